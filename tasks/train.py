"""Both training stages for images: what ``maskgen train tokenizer`` and ``maskgen train transformer`` run.

Shapes: B batch, N tokens, K codebooks, H W pixels.
"""

from __future__ import annotations

import dataclasses
import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from maskgen.checkpoint import load_module, read_json, write_json
from maskgen.data import Batch, Source, TensorSource
from maskgen.objective import MaskedModeling, MaskingSettings
from maskgen.precision import fast_matmul
from maskgen.tasks.datasets import ImageData
from maskgen.tasks.generate import generate
from maskgen.tasks.media import image_grid, save_image, to_images
from maskgen.tasks.pipeline import Pipeline, PipelineConfig, Sampling
from maskgen.tokenizers.base import Tokenizer
from maskgen.tokenizers.training import ReconstructionSettings, VQGANTraining
from maskgen.tokenizers.vqgan import VQGAN, VQGANConfig
from maskgen.trainer import Trainer, TrainSettings
from maskgen.transformer import MaskedTransformer

__all__ = ["tokenize", "train_tokenizer", "train_transformer"]

Say = Callable[[str], None]


def train_tokenizer(
    *,
    tokenizer: VQGANConfig,
    data: ImageData,
    loss: ReconstructionSettings,
    settings: TrainSettings,
    out: Path,
    say: Say = print,
) -> Path:
    """Stage 1: train an image tokenizer.

    Args:
        tokenizer: sizes of the VQGAN.
        data: images to train on.
        loss: terms of the loss.
        settings: how long and how wide.
        out: folder of the run, which becomes the tokenizer's folder; an interrupted run goes on, a finished one is reused.
        say: told what happens.

    Returns:
        ``out``.

    Raises:
        ValueError: ``out`` holds a run with other settings, or the discriminator is for images of another size.
    """
    description = _describe(tokenizer=tokenizer, data=data, loss=loss, settings=settings)
    judged = loss.discriminator.image_size
    if loss.gan_weight and tuple(data.size) != (judged, judged):
        raise ValueError(
            f"loss.discriminator.image_size: got {judged}, but the images are {data.size[0]} x {data.size[1]}; set it to "
            "the images' side, or gan_weight to 0"
        )
    if _finished(out, description, "tokenizer", say):
        return out
    torch.manual_seed(settings.seed)
    objective = VQGANTraining(VQGAN(tokenizer), loss, held_out=data.test(), show=_show_reconstructions(data))
    trainer = Trainer(objective, data.train(), settings, out, title="tokenizer")
    # Only now: what was refused above leaves no run behind that would forbid other settings.
    write_json(out / "run.json", {**description, "finished": False})
    trainer.fit()
    write_json(out / "run.json", {**description, "finished": True})
    return out


def train_transformer(
    *,
    tokenizer: Path,
    transformer: MaskedTransformer,
    data: ImageData,
    masking: MaskingSettings,
    settings: TrainSettings,
    out: Path,
    sampling: Sampling | None = None,
    views: int = 1,
    say: Say = print,
) -> Path:
    """Stage 2: train a masked-token transformer on a tokenizer's codes.

    Args:
        tokenizer: folder of the tokenizer, of an earlier ``train_tokenizer`` for instance.
        transformer: the model to train; its weights start anew from ``settings.seed``.
        data: images to train on.
        masking: what is hidden and what it costs.
        settings: how long and how wide.
        out: the model folder to make: ``tokenizer/``, ``transformer/`` and ``pipeline.json``.
        sampling: settings the model will sample with unless told otherwise.
        views: how many differently augmented views of each image are tokenized before training.
        say: told what happens.

    Returns:
        ``out``.

    Raises:
        FileNotFoundError: no tokenizer there.
        ValueError: the transformer does not fit the tokenizer or the data, or ``out`` holds a run with other settings.
    """
    run = out / "transformer"
    if not (tokenizer / "config.json").is_file():
        raise FileNotFoundError(
            f"tokenizer: got {tokenizer}, which holds none (no config.json); name a folder made by "
            "`maskgen train tokenizer`"
        )
    codes = load_module(tokenizer, Tokenizer)  # type: ignore[type-abstract]
    _check_fit(codes, transformer, data)
    description = _describe(
        tokenizer=_fingerprint(codes),
        transformer=transformer,
        data=data,
        masking=masking,
        settings=settings,
        sampling=sampling,
        views=views,
    )
    if _finished(run, description, "transformer", say):
        return out
    torch.manual_seed(settings.seed)
    model = type(transformer)(transformer.config)
    codes.to("cuda" if torch.cuda.is_available() else "cpu")  # where all images are encoded
    config = PipelineConfig(signal_size=data.size, class_names=data.class_names, sampling=sampling or Sampling())
    say(f"transformer: tokenizing {len(data.train())} images, {views} view(s) each")
    held_out = data.test()
    objective = MaskedModeling(
        model,
        masking,
        held_out=None if held_out is None else tokenize(held_out, codes),
        show=_show_samples(codes, config),
    )
    tokens = tokenize(data.train(), codes, views=views, seed=settings.seed)
    trainer = Trainer(objective, tokens, settings, run, title="transformer")
    write_json(run / "run.json", {**description, "finished": False})
    _copy_files(tokenizer, out / "tokenizer")
    trainer.fit()
    Pipeline(codes, load_module(run, MaskedTransformer), config).save_pretrained(out)  # type: ignore[type-abstract]
    write_json(run / "run.json", {**description, "finished": True})
    return out


@torch.no_grad()
def tokenize(
    source: Source, tokenizer: Tokenizer, *, views: int = 1, seed: int = 0, batch_size: int = 64
) -> TensorSource:
    """All tokens of a source, in memory.

    Args:
        source: batches with ``images`` and ``labels``.
        tokenizer: turns images into tokens, on the device it is on.
        views: passes over the source, each with seeds of its own.
        seed: of the augmentation.
        batch_size: images at a time.

    Returns:
        ``tokens`` long ``[views x len, N, K]`` and ``labels`` long.
    """
    if views < 1:
        raise ValueError(f"views: got {views}, expected at least 1")
    device = next((weight.device for weight in tokenizer.parameters()), torch.device("cpu"))  # a toy has no weights
    parts: list[Batch] = []
    with fast_matmul(device):
        for view in range(views):
            for first in range(0, len(source), batch_size):
                indices = range(first, min(first + batch_size, len(source)))
                seeds = [seed + view * len(source) + index for index in indices]
                batch = source.batch(indices, seeds)
                parts.append({"tokens": tokenizer.encode(batch["images"].to(device)).cpu(), "labels": batch["labels"]})
    return TensorSource(**{name: torch.cat([part[name] for part in parts]) for name in ("tokens", "labels")})


def _check_fit(tokenizer: Tokenizer, transformer: MaskedTransformer, data: ImageData) -> None:
    axes = tokenizer.axes((1, 3, *data.size))
    got = {
        "vocab_size": transformer.vocab_size,
        "num_codebooks": transformer.num_codebooks,
        "axes": tuple(transformer.config.axes),
        "num_classes": transformer.num_classes,
    }
    expected = {
        "vocab_size": tokenizer.vocab_size,
        "num_codebooks": tokenizer.num_codebooks,
        "axes": axes,
        "num_classes": len(data.class_names),
    }
    wrong = [f"{name} is {got[name]}, expected {expected[name]}" for name in got if got[name] != expected[name]]
    if wrong:
        raise ValueError(f"the transformer does not fit the tokenizer and the data: {'; '.join(wrong)}")


def _describe(**parts: Any) -> dict[str, Any]:
    """Everything that decides a run's outcome, as plain values."""

    def plain(value: Any) -> Any:
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            return dataclasses.asdict(value)
        if isinstance(value, nn.Module):
            return {"class": type(value).__name__, "config": dataclasses.asdict(value.config)}  # type: ignore[call-overload]
        if isinstance(value, ImageData):
            examples = {"train": len(value.train()), "test": len(value.test() or ())}
            arguments = {
                name: found
                for name, found in vars(value).items()
                if not name.startswith("_") and isinstance(found, bool | int | float | str | tuple)
            }
            return {"class": type(value).__name__, "class_names": value.class_names, **arguments, **examples}
        return value

    return {name: plain(value) for name, value in parts.items()}


def _fingerprint(module: nn.Module) -> str:
    """Of a module's class, config and weights: codes of another tokenizer mean something else."""
    digest = hashlib.sha256(repr((type(module).__name__, module.config)).encode())
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(name.encode() + tensor.double().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def _copy_files(source: Path, target: Path) -> None:
    """The files of a tokenizer's folder; its checkpoints, logs and samples stay behind."""
    if source.resolve() == target.resolve():
        return
    target.mkdir(parents=True, exist_ok=True)
    for path in source.iterdir():
        if path.is_file():
            shutil.copy(path, target)


def _finished(run: Path, description: dict[str, Any], title: str, say: Say) -> bool:
    """Compare with what the folder holds; True if that run is finished and can be used as it is."""
    path = run / "run.json"
    if not path.is_file():
        return False
    found = read_json(path)
    if not isinstance(found, dict):
        raise ValueError(f"{path}: not written by maskgen; choose another output folder or delete this one")
    finished = bool(found.pop("finished", False))
    if not finished and not any((run / "checkpoints").glob("step-*")):
        return False  # it stopped before anything was kept, so other settings do no harm
    wanted = _plain_json(description)
    changed = sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name))
    if changed:
        raise ValueError(
            f"{run}: holds a run with other settings ({', '.join(changed)}); choose another output folder or delete this one"
        )
    if finished:
        say(f"{title}: finished before, reused from {run}")
    return finished


def _plain_json(value: Any) -> Any:
    """What a value looks like after a trip through JSON: tuples become lists."""
    if isinstance(value, dict):
        return {str(key): _plain_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain_json(item) for item in value]
    return value


def _show_reconstructions(data: ImageData) -> Callable[[nn.Module, Path, int], None]:
    def show(model: nn.Module, folder: Path, step: int) -> None:
        source = data.test() or data.train()
        count = min(8, len(source))
        images = source.batch(range(count), range(count))["images"]
        device = next(model.parameters()).device
        rebuilt = model(images.to(device)).reconstruction.float().cpu()[..., : images.shape[-2], : images.shape[-1]]
        rows = to_images(torch.cat((images, rebuilt.clamp(0, 1))))
        save_image(image_grid(rows, count), folder / f"reconstructions-{step:08d}.png")

    return show


def _show_samples(tokenizer: Tokenizer, config: PipelineConfig) -> Callable[[nn.Module, Path, int], None]:
    def show(model: nn.Module, folder: Path, step: int) -> None:
        assert isinstance(model, MaskedTransformer)
        device = next(model.parameters()).device
        pipe = Pipeline(tokenizer, model, config, device)
        columns = min(10, model.num_classes)
        labels = [index for _ in range(4) for index in range(columns)]
        save_image(image_grid(generate(pipe, labels), columns), folder / f"samples-{step:08d}.png")

    return show
