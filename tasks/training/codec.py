"""The first stage for sound: what ``maskgen train codec`` runs.

Shapes: B batch, C channels, S samples.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from maskgen.checkpoint import write_json
from maskgen.tasks.data.base import AudioData
from maskgen.tasks.training.runs import Say, describe, finished_before
from maskgen.tokenizers.audio.codec import AudioCodec, AudioCodecConfig
from maskgen.tokenizers.training.audio import CodecLossSettings, CodecTraining
from maskgen.training.trainer import Trainer, TrainSettings

__all__ = ["train_codec"]

_SHOWN = 4  # sounds a run writes now and then


def train_codec(
    *,
    codec: AudioCodecConfig,
    data: AudioData,
    loss: CodecLossSettings,
    settings: TrainSettings,
    out: Path,
    say: Say = print,
) -> Path:
    """Stage 1 for sound: train an audio codec.

    Args:
        codec: sizes of the codec.
        data: sounds to train on.
        loss: terms of the loss.
        settings: how long and how wide.
        out: folder of the run, which becomes the codec's folder; an interrupted run goes on, a finished one is reused.
        say: told what happens.

    Returns:
        ``out``.

    Raises:
        ValueError: ``out`` holds a run with other settings, or the data have another sample rate or number of channels.
    """
    got, expected = (data.sample_rate, data.channels), (codec.sample_rate, codec.channels)
    if got != expected:
        raise ValueError(
            f"data: got {got[0]} Hz and {got[1]} channel(s), but the codec has {expected[0]} Hz and {expected[1]}; set "
            "sample_rate and channels of one to those of the other"
        )
    description = describe(codec=codec, data=data, loss=loss, settings=settings)
    if finished_before(out, description, "codec", say):
        return out
    torch.manual_seed(settings.seed)
    objective = CodecTraining(AudioCodec(codec), loss, held_out=data.test(), show=_show_reconstructions(data))
    trainer = Trainer(objective, data.train(), settings, out, title="codec")
    # Only now: what was refused above leaves no run behind that would forbid other settings.
    write_json(out / "run.json", {**description, "finished": False})
    trainer.fit()
    write_json(out / "run.json", {**description, "finished": True})
    return out


def _show_reconstructions(data: AudioData) -> Callable[[nn.Module, Path, int], None]:
    """Writes each sound once as it was, and as the codec gives it back at every showing."""

    def show(model: nn.Module, folder: Path, step: int) -> None:
        from maskgen.tasks.media.audio.files import save_sound  # asks for soundfile

        assert isinstance(model, AudioCodec)
        source = data.test() or data.train()
        count = min(_SHOWN, len(source))
        sounds = source.batch(range(count), range(count))[data.key]
        device = next(model.parameters()).device
        axes = model.axes(sounds.shape)
        rebuilt = model.decode(model.encode(sounds.to(device)), axes).float().cpu()[..., : sounds.shape[-1]]
        for number in range(count):
            original = folder / f"sound-{number}-original.wav"
            if not original.exists():
                save_sound(sounds[number], original, data.sample_rate)
            save_sound(rebuilt[number], folder / f"sound-{number}-{step:08d}.wav", data.sample_rate)

    return show
