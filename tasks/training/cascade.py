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
        ValueError: a transformer that takes no smaller grid or another one, or none given to one that does; data that are
            tokens already, or no larger pictures of the same shape.
    """
    told = getattr(getattr(transformer.config, "context", None), "coarse", None)
    if folder is None:
        if transformer.coarse_size:
            raise ValueError(
                f"transformer: takes {transformer.coarse_size} tokens of a smaller grid (context.coarse), but there is no "
                "model of it; name one: coarse: FOLDER"
            )
        return None
    pipe = Pipeline.from_pretrained(folder, device="cpu")
    pipe.require("image", "coarse")
    if isinstance(data, TokenShards):
        raise ValueError("data: got tokens, but a cascade needs the pictures, which both tokenizers read; name those")
    small, size = pipe.config.signal_size, data.size
    if pipe.tokenizer.num_codebooks != 1 or len(size) != 2 or small[0] * size[1] != small[1] * size[0] or small >= size:
        raise ValueError(
            f"coarse: got a model of pictures of {small[0]} x {small[1]} with {pipe.tokenizer.num_codebooks} codebook(s), "
            f"expected smaller ones of the shape of {' x '.join(map(str, size))}, with one"
        )
    expected = (pipe.tokenizer.vocab_size, tuple(pipe.axes))
    got = (0, ()) if told is None else (told.vocab_size, tuple(told.axes))
    if got != expected:
        raise ValueError(
            f"the transformer does not fit the coarse model: context.coarse has {got[0]} codes on {got[1]}, expected "
            f"{expected[0]} on {expected[1]}"
        )
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
