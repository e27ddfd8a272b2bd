"""The second stage of a cascade: pictures from the tokens of smaller ones, by the tokenizer of a model that makes those.

Shapes: B batch, M tokens of the smaller grid.
"""

import dataclasses
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from maskgen.models.base import MaskedTransformer
from maskgen.tasks.conditions.text.base import TextEncoder
from maskgen.tasks.data.base import SignalData
from maskgen.tasks.data.tokens.coarse import SmallPictures
from maskgen.tasks.data.tokens.shards import TokenShards
from maskgen.tasks.model_folder import PipelineConfig
from maskgen.tasks.pipeline import Pipeline
from maskgen.tasks.pipeline.cascade import check_stages
from maskgen.tasks.training.shown import save_rows, some_signals
from maskgen.tasks.training.text import some_captions
from maskgen.tokenizers.base import Tokenizer
from maskgen.training.objective import Show

_SHOWN = 8  # pictures a run writes now and then


def first_stage(folder: Path | None, transformer: MaskedTransformer, data: SignalData) -> Pipeline | None:
    """The model of the smaller pictures, if there is one.

    Args:
        folder: of that model.
        transformer: of the second stage.
        data: its pictures.

    Raises:
        FileNotFoundError: no model there.
        ValueError: none given to a transformer that takes a smaller grid, data that are tokens already, or stages that do
            not fit, see ``maskgen.tasks.pipeline.cascade.check_stages``.
    """
    if folder is None:
        if transformer.coarse_size:
            raise ValueError(
                f"transformer: takes {transformer.coarse_size} tokens of a smaller grid (context.coarse), but there is no "
                "model of it; name one: coarse: FOLDER"
            )
        return None
    pipe = Pipeline.from_pretrained(folder, device="cpu")
    if isinstance(data, TokenShards):
        raise ValueError("data: got tokens, but a cascade needs the pictures, which both tokenizers read; name those")
    check_stages(pipe, transformer, PipelineConfig(signal_size=data.size, class_names=data.class_names), data.modality)
    return pipe


def small_pictures(first: Pipeline) -> SmallPictures:
    """How the first stage sees pictures."""
    height, width = first.config.signal_size
    return SmallPictures(first.tokenizer, (height, width))


def show_enlarged(
    tokenizer: Tokenizer, config: PipelineConfig, data: SignalData, text: TextEncoder | None, small: SmallPictures
) -> Show:
    """Writes pictures, what the first stage's tokens tell of them, and what the second stage makes of that."""

    def show(model: nn.Module, folder: Path, step: int) -> None:
        assert isinstance(model, MaskedTransformer)
        device = next(model.parameters()).device
        pipe, batch = Pipeline(tokenizer, model, config, device, text=text), some_signals(data, _SHOWN)
        pictures = batch[data.key]
        tokens = small.encode(pictures)
        decoded = small.tokenizer.decode(tokens, small.axes).float().cpu()
        options = {"seeds": range(len(pictures))} | ({} if text is None else {"prompt": some_captions(data, _SHOWN)[0]})
        request = pipe.generation(batch["labels"].tolist() if "labels" in batch else None, options)  # type: ignore[arg-type]
        cond = dataclasses.replace(request.cond, coarse=tokens.cpu())
        made = pipe.generate(dataclasses.replace(request, cond=cond))
        blurred = F.interpolate(decoded, pictures.shape[2:], mode="bilinear", antialias=True)
        save_rows([pictures, blurred, made.to(torch.float32)], folder / f"samples-{step:08d}", data)

    return show
