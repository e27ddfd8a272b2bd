"""Training: what ``maskgen train tokenizer`` (images) and ``maskgen train transformer`` (any modality) run.

``maskgen train codec``, the first stage for sound, is in ``train_codec``. The second stage for sound may come in two: a
coarse transformer for the first codebooks, then a fine one that adds the others.

Shapes: B batch, N tokens, K codebooks, H W pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from maskgen.checkpoint import write_json
from maskgen.tasks.data.base import ImageData
from maskgen.tasks.media.images import image_grid, save_image, to_images
from maskgen.tasks.training.runs import Say, _tell_skipped, describe, finished_before
from maskgen.tokenizers.image.vqgan import VQGAN, VQGANConfig
from maskgen.tokenizers.training.reconstruction import ReconstructionSettings, ReconstructionTraining
from maskgen.training.trainer import Trainer, TrainSettings

__all__ = ["train_tokenizer"]

Show = Callable[[nn.Module, Path, int], None]


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
    description = describe(tokenizer=tokenizer, data=data, loss=loss, settings=settings)
    judged = loss.discriminator.image_size
    if loss.gan_weight and tuple(data.size) != (judged, judged):
        raise ValueError(
            f"loss.discriminator.image_size: got {judged}, but the images are {data.size[0]} x {data.size[1]}; set it to "
            "the images' side, or gan_weight to 0"
        )
    if finished_before(out, description, "tokenizer", say):
        return out
    torch.manual_seed(settings.seed)
    data.log_skipped(out / "skipped.jsonl")
    objective = ReconstructionTraining(VQGAN(tokenizer), loss, held_out=data.test(), show=_show_reconstructions(data))
    trainer = Trainer(objective, data.train(), settings, out, title="tokenizer")
    # Only now: what was refused above leaves no run behind that would forbid other settings.
    write_json(out / "run.json", {**description, "finished": False})
    trainer.fit()
    _tell_skipped(out, "tokenizer", say)
    write_json(out / "run.json", {**description, "finished": True})
    return out


def _show_reconstructions(data: ImageData) -> Show:
    def show(model: nn.Module, folder: Path, step: int) -> None:
        source = data.test() or data.train()
        count = min(8, len(source))
        images = source.batch(range(count), range(count))["images"]
        device = next(model.parameters()).device
        rebuilt = model(images.to(device)).reconstruction.float().cpu()[..., : images.shape[-2], : images.shape[-1]]
        rows = to_images(torch.cat((images, rebuilt.clamp(0, 1))))
        save_image(image_grid(rows, count), folder / f"reconstructions-{step:08d}.png")

    return show
