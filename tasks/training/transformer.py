"""Stage 2 for images and sound: what ``maskgen train transformer`` runs.

The second stage for sound may come in two: a coarse transformer for the first codebooks, then a fine one that adds the
others.

Shapes: B batch, N tokens, K codebooks, H W pixels.
"""

import dataclasses
from pathlib import Path
from typing import Literal, TypedDict, Unpack

import torch
from torch import nn

from maskgen.checkpoint import code_fingerprint, load_module
from maskgen.conditioning import NO_LABEL
from maskgen.data import Source, draw_numbers
from maskgen.models.base import MaskedTransformer
from maskgen.objectives.masked import MaskedModeling, MaskingSettings
from maskgen.published.vampnet.transformer import VampNetTransformer
from maskgen.sampling.settings import Sampling
from maskgen.tasks.conditions.classes import check_class_order
from maskgen.tasks.conditions.request import Request
from maskgen.tasks.conditions.text.base import TextEncoder
from maskgen.tasks.conditions.text.prompts import Wording
from maskgen.tasks.data.base import SignalData
from maskgen.tasks.data.tokens.coarse import SmallPictures
from maskgen.tasks.data.tokens.shards import TokenShards
from maskgen.tasks.image.generation import generate
from maskgen.tasks.media.audio.backends import check_writing
from maskgen.tasks.media.images import image_grid, save_image
from maskgen.tasks.model_folder import PipelineConfig, check_codec, trained_on
from maskgen.tasks.pipeline import Pipeline
from maskgen.tasks.training.cascade import first_stage, show_enlarged, small_pictures
from maskgen.tasks.training.checks import (
    check_preparation,
    check_shards,
    check_signals,
    load_tokenizer,
    misfits,
    tokenizer_folder,
    with_classes,
)
from maskgen.tasks.training.runs import Say, copy_files, run_stage
from maskgen.tasks.training.shown import save_sounds, some_signals
from maskgen.tasks.training.text import check_captions, some_captions, text_encoder, with_captions
from maskgen.tasks.training.tokens import training_tokens
from maskgen.tokenizers.audio.base import AudioTokenizer
from maskgen.tokenizers.base import OwnModality, Tokenizer
from maskgen.training.objective import Objective, Show
from maskgen.training.settings import TrainSettings

Stage = Literal["coarse", "fine"]

_SHOWN = 2  # sounds a run writes now and then
_CLASSES = 10  # of which it generates samples


class SoundOptions(TypedDict, total=False):
    """What only sound has, all optional.

    Attributes:
        codebooks: train on the first so many codebooks only; all if left out.
        stage: ``coarse``, or ``fine`` for the second transformer of a sound model, which goes into ``fine/`` of the model
            folder that an earlier run made with ``codebooks``; ``masking.visible_codebooks`` must be that number.
    """

    codebooks: int | None
    stage: Stage


def train_transformer(
    *,
    tokenizer: Path,
    transformer: MaskedTransformer,
    data: SignalData,
    masking: MaskingSettings,
    settings: TrainSettings,
    out: Path,
    sampling: Sampling | None = None,
    views: int = 1,
    text: TextEncoder | str | None = None,
    coarse: Path | None = None,
    again: bool = False,
    say: Say = print,
    **sound: Unpack[SoundOptions],
) -> Path:
    """Stage 2: train a masked-token transformer on a tokenizer's codes.

    The tokens are kept in ``tokens/`` of the model folder, for a run that goes on and for the fine stage of sound.

    Args:
        tokenizer: folder of the tokenizer, of an earlier ``train_tokenizer`` for instance.
        transformer: the model to train; its weights start anew from ``settings.seed``, and its number of classes is that
            of the data.
        data: images or sounds to train on, or their tokens as ``maskgen tokenize`` wrote them.
        masking: what is masked and what it costs.
        settings: how long and how wide.
        out: the model folder to make: ``tokenizer/``, ``transformer/`` and ``pipeline.json``.
        sampling: settings the model will sample with unless told otherwise.
        views: how many differently augmented views of each example are tokenized before training.
        text: for data with captions, the encoder that turns them into what the transformer is conditioned on: by its class,
            or a folder or name on the Hub for ``maskgen.tasks.conditions.text.PretrainedText``. It stays as it is, and each
            different caption is encoded once, before training.
        coarse: for the second stage of a cascade, the model folder of the first, which makes smaller pictures: the
            transformer is shown the tokens of each picture made smaller (``context.coarse`` of its settings). A copy of the
            first stage goes into ``coarse/``.
        again: train anew even if ``out`` holds a run; that one is moved into ``earlier-1`` beside the new one's files.
        say: told what happens.
        **sound: see ``SoundOptions``.

    Returns:
        ``out``.

    Raises:
        FileNotFoundError: no tokenizer or text encoder there, or for ``fine`` no model.
        ValueError: the transformer does not fit the tokenizer, the data, the text encoder or the coarse model, the tokens
            are another tokenizer's, captions without an encoder or the other way round, or ``out`` holds another run.
    """
    codebooks, stage = sound.get("codebooks"), sound.get("stage") or "coarse"
    folder, text = tokenizer_folder(tokenizer), text_encoder(text)
    codes = load_tokenizer(folder)
    identity = code_fingerprint(codes)
    check_shards(data, identity, views)
    transformer = with_classes(transformer, len(data.class_names), say)
    _check_fit(codes, transformer, data, _kept_codebooks(codes, codebooks, stage))
    features = out / "tokens" / "text"
    check_captions(text, transformer, data, features, again=again)
    check_preparation("tokenizer", trained_on(folder), data)
    first = first_stage(coarse, transformer, data)
    small = None if first is None else small_pictures(first)
    begun = _coarse_model(out, codes, masking, transformer, data) if stage == "fine" else None
    run, title = (out / "transformer", "transformer") if begun is None else (out / "fine", "fine transformer")
    config = PipelineConfig(
        signal_size=data.size, class_names=data.class_names, sampling=sampling or Sampling(), prepared=data.prepared
    )

    def make() -> tuple[Objective, Source]:
        model = type(transformer)(transformer.config)
        if isinstance(model, VampNetTransformer) and isinstance(codes, AudioTokenizer):
            model.set_code_tables(codes.code_tables())
        shown = _show(codes, config, data, masking.visible_codebooks, text, small)
        objective = MaskedModeling(model, masking, show=shown)
        told = {"views": views, "seed": settings.seed, "title": title, "again": again, "say": say, "coarse": small}
        sources = training_tokens(codes, data, out / "tokens", model.num_codebooks, **told)  # type: ignore[arg-type]
        if text is not None:
            sources, objective.null = with_captions(text, model, sources, data, features, again=again, say=say)
        source, objective.held_out = sources
        if begun is None:
            copy_files(folder, out / "tokenizer")
        return objective, source

    def finish() -> None:
        trained = load_module(run, MaskedTransformer)  # type: ignore[type-abstract]
        if begun is None:
            return Pipeline(codes, trained, config, text=text, coarse=first).save_pretrained(out)
        both = dataclasses.replace(begun.config, fine_sampling=config.sampling)
        return Pipeline(codes, begun.transformer, both, fine=trained, text=text).save_pretrained(out)

    parts = {"tokenizer": identity, "transformer": transformer, "data": data, "masking": masking, "settings": settings}
    parts |= {"sampling": sampling, "views": views}
    parts |= {name: one.identity() for name, one in (("text", text), ("coarse", small)) if one is not None}
    run_stage(run, title, parts, make, finish=finish, again=again, say=say)
    return out


def _kept_codebooks(tokenizer: Tokenizer, codebooks: int | None, stage: Stage) -> int:
    """How many codebooks the transformer must have."""
    most = tokenizer.num_codebooks
    if not isinstance(tokenizer, AudioTokenizer) and (codebooks is not None or stage != "coarse"):
        raise ValueError(
            f"codebooks and stage are for sound, but the tokenizer's modality is {tokenizer.modality}; leave them out"
        )
    if codebooks is None:
        return most
    if stage == "fine":
        raise ValueError(
            f"codebooks: got {codebooks}, but a fine transformer has all {most} of the codec; leave it out"
        )
    if not 1 <= codebooks <= most:
        raise ValueError(f"codebooks: got {codebooks}, expected 1 to {most}, the codec's")
    return codebooks


def _coarse_model(
    out: Path, codec: Tokenizer, masking: MaskingSettings, transformer: MaskedTransformer, data: SignalData
) -> Pipeline:
    """The model that a fine transformer is trained for."""
    if not (out / "pipeline.json").is_file():
        raise FileNotFoundError(
            f"out: got {out}, which holds no model yet; train the coarse transformer into it first, with codebooks"
        )
    assert isinstance(codec, AudioTokenizer)  # see _kept_codebooks
    pipe = Pipeline.from_pretrained(out, device="cpu")
    check_codec(codec, pipe.config.tokenizer_identity)
    first = pipe.transformer.num_codebooks
    if first >= codec.num_codebooks:
        raise ValueError(f"{out}: its transformer has all {first} codebooks of the codec; there is nothing left to add")
    if masking.visible_codebooks != first:
        raise ValueError(
            f"masking.visible_codebooks: got {masking.visible_codebooks}, expected {first}: the codebooks that the "
            "transformer of this model decides are given to the fine one"
        )
    check_preparation("coarse transformer", pipe.config.prepared, data)
    if transformer.num_classes and pipe.transformer.num_classes:
        check_class_order(data.class_names, pipe.config.class_names, "the data", "the coarse model")
    return pipe


def _check_fit(tokenizer: Tokenizer, transformer: MaskedTransformer, data: SignalData, codebooks: int) -> None:
    if tokenizer.modality == "video":
        raise ValueError(
            "tokenizer: got one of video, which has tasks of its own; use `maskgen train video-transformer`"
        )
    check_signals(tokenizer, data)
    if wrong := misfits(tokenizer, transformer, data, codebooks=codebooks, classes=len(data.class_names)):
        raise ValueError(f"the transformer does not fit the tokenizer and the data: {'; '.join(wrong)}")


def _show(
    codes: Tokenizer,
    config: PipelineConfig,
    data: SignalData,
    visible: int,
    text: TextEncoder | None,
    small: SmallPictures | None,
) -> Show | None:
    """What a run writes now and then; nothing for sounds of which only the tokens are there."""
    if small is not None:
        return show_enlarged(codes, config, data, text, small)
    if isinstance(codes, OwnModality):
        return _show_files(codes, config, data, text)
    if not isinstance(codes, AudioTokenizer):
        return _show_samples(codes, config, data, text)
    return None if isinstance(data, TokenShards) else _show_sounds(codes, config, data, visible, text)


def _wishes(
    model: MaskedTransformer, data: SignalData, text: TextEncoder | None, folder: Path
) -> tuple[list[int] | None, list[str] | None]:
    """Classes and prompts to show: some captions, written beside the samples, with their classes; or some classes."""
    if text is None:
        return draw_numbers(model.num_classes, _CLASSES) or None, None
    captions, labels = some_captions(data, _CLASSES)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "captions.txt").write_text("".join(f"{caption}\n" for caption in captions), encoding="utf-8")
    return labels, captions


def _show_samples(tokenizer: Tokenizer, config: PipelineConfig, data: SignalData, text: TextEncoder | None) -> Show:
    def show(model: nn.Module, folder: Path, step: int) -> None:
        assert isinstance(model, MaskedTransformer)
        pipe = Pipeline(tokenizer, model, config, next(model.parameters()).device, text=text)
        labels, prompts = _wishes(model, data, text, folder)
        columns = len(prompts or labels or ()) or _CLASSES
        wishes = {"labels": labels and labels * 4, "prompt": prompts and prompts * 4}
        pictures = generate(pipe, **wishes, seeds=range(4 * columns))  # type: ignore[arg-type]
        save_image(image_grid(pictures, columns), folder / f"samples-{step:08d}.png")

    return show


def _show_files(tokenizer: OwnModality, config: PipelineConfig, data: SignalData, text: TextEncoder | None) -> Show:
    """Writes a file of each of some classes or captions."""

    def show(model: nn.Module, folder: Path, step: int) -> None:
        assert isinstance(model, MaskedTransformer)
        pipe = Pipeline(tokenizer, model, config, next(model.parameters()).device, text=text)
        folder.mkdir(parents=True, exist_ok=True)
        labels, prompts = _wishes(model, data, text, folder)
        for number, signal in enumerate(pipe.generate(pipe.generation(labels, {"prompt": prompts}))):
            tokenizer.write(signal, folder / f"sample-{number}-{step:08d}{tokenizer.suffix}")

    return show


def _show_sounds(
    codec: AudioTokenizer, config: PipelineConfig, data: SignalData, visible: int, text: TextEncoder | None
) -> Show:
    """Writes some sounds once as they were, and at every showing with their middle third filled by the model."""
    check_writing()

    def show(model: nn.Module, folder: Path, step: int) -> None:
        assert isinstance(model, MaskedTransformer)
        batch = some_signals(data, _SHOWN)
        pipe = Pipeline(codec, model, config, next(model.parameters()).device, text=text)
        tokens = pipe.encode(batch[data.key])[..., : model.num_codebooks]
        mask = torch.zeros_like(tokens, dtype=torch.bool)
        frames = mask.shape[1]
        mask[:, frames // 3 : -(-2 * frames // 3), visible:] = True
        ids = batch["labels"].tolist() if "labels" in batch else [NO_LABEL] * len(tokens)
        cond = pipe.cond(ids, None if text is None else Wording(some_captions(data, _SHOWN)[0]))
        request = Request(seeds=range(len(tokens)), sampling=config.sampling, cond=cond)
        filled = pipe.decode(pipe.fill(tokens, mask, request))
        save_sounds(batch[data.key], filled[..., : data.size[0]], codec.sample_rate, folder, step)

    return show
