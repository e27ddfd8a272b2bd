"""Stage 1 for sound: train an ``AudioCodec`` to reconstruct.

Shapes: B batch, C channels, S samples, T frames, K codebooks, V codes, D width of a code.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Unpack

import torch
from torch import Tensor, nn

from maskgen.data import draw_numbers
from maskgen.tokenizers.audio.codec import AudioCodec, AudioCodecOutput
from maskgen.tokenizers.quantizers.care import CodebookSettings
from maskgen.tokenizers.training.base import TokenizerTraining, crop_like
from maskgen.tokenizers.training.losses.audio import SpectralLoss, si_sdr
from maskgen.training.objective import ObjectiveOptions


@dataclass(frozen=True, kw_only=True)
class CodecLossSettings:
    """Terms of the loss.

    Attributes:
        excerpt: samples of a training sound that a step sees, cut at a random frame; 0 for all of it.
        windows: of ``SpectralLoss``, samples.
        bands: its mel bands, one number a window.
        linear: its weight of linear magnitudes.
        floor: magnitudes below it count as silence.
        quantize_from: steps before the decoder sees codes instead of latents.
        revive_every: steps between looks at the codebooks: codes not used since the last look move onto random latents. The
            first look, at ``quantize_from``, moves all of them, so that codebooks begin as latents. 0 = never.
        revive_last: step after which codes stay where they are.
        validation: how many held-out sounds a validation takes at most.
    """

    excerpt: int = 0
    windows: tuple[int, ...] = (2048, 1024, 512, 256, 128)
    bands: tuple[int, ...] = (160, 80, 40, 20, 10)
    linear: float = 1.0
    floor: float = 1e-5
    quantize_from: int = 100
    revive_every: int = 50
    revive_last: int = 100_000
    validation: int = 64

    def __post_init__(self) -> None:
        for name in ("excerpt", "quantize_from", "revive_every", "revive_last"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}: got {getattr(self, name)}, expected 0 or more")
        if self.validation < 1 or self.floor <= 0:
            raise ValueError(f"got validation {self.validation} and floor {self.floor}, expected positive numbers")

    def objective(self, model: AudioCodec, size: tuple[int, ...], **options: Unpack[ObjectiveOptions]) -> CodecTraining:
        """See ``maskgen.tokenizers.training.base.TrainingLoss``; sounds of any size will do."""
        return CodecTraining(model, self, **options)


class CodecTraining(TokenizerTraining):
    """Reconstruct sounds through the codes. Batches hold ``audio`` float ``[B, C, S]`` in [-1, 1].

    The loss is the mean absolute difference of the samples, ``SpectralLoss`` and the quantizer's own.

    Args:
        model: the codec.
        settings: see ``CodecLossSettings``.
        options: see ``maskgen.training.objective.ObjectiveOptions``.
    """

    def __init__(self, model: AudioCodec, settings: CodecLossSettings, **options: Unpack[ObjectiveOptions]) -> None:
        self.settings = settings
        care = CodebookSettings(
            revive_every=settings.revive_every, revive_last=settings.revive_last, revive_all=settings.quantize_from
        )
        super().__init__(model, key="audio", care=care, validation=settings.validation, **options)
        self.spectral = SpectralLoss(
            model.sample_rate, settings.windows, settings.bands, linear=settings.linear, floor=settings.floor
        )

    def state(self) -> nn.Module | None:
        """Which codes were used since the last look; no ``ModuleDict``, as earlier checkpoints have it."""
        return self.care

    def _generator_loss(
        self, modules: Mapping[str, nn.Module], signal: Tensor, step: int
    ) -> tuple[Tensor, dict[str, Tensor], Tensor, Tensor]:
        quantize = step >= self.settings.quantize_from
        out: AudioCodecOutput = modules["model"](signal) if quantize else modules["model"](signal, False)
        fake = crop_like(out.reconstruction, signal)
        waveform = (fake - signal).abs().mean()
        spectral = self.spectral.to(signal.device)(fake, signal)
        loss = waveform + spectral
        if quantize:
            loss = loss + out.quantized.loss
        return loss, {"waveform": waveform, "spectral": spectral, **out.quantized.terms}, fake, out.quantized.codes

    @torch.no_grad()
    def validate(self, model: nn.Module, device: torch.device) -> dict[str, float]:
        """Held-out spectral distance (``score``), SI-SDR in dB, and how evenly the codes are used."""
        if self.held_out is None:
            return {}
        numbers = draw_numbers(len(self.held_out), self.validation)
        audio = self.held_out.batch(numbers, numbers)[self.key].to(device)
        out: AudioCodecOutput = model(audio)
        fake = crop_like(out.reconstruction, audio)
        return {
            "score": float(self.spectral.to(device)(fake, audio)),
            "si_sdr": float(si_sdr(fake, audio).mean()),
            **self._usage(out.quantized.codes),
        }

    def _excerpt(self, signal: Tensor) -> Tensor:
        length = self.settings.excerpt
        if not length or length >= signal.shape[-1]:
            return signal
        # On whole frames, as they are when a whole sound is encoded.
        (hop,) = self.model.stride
        frames = (signal.shape[-1] - length) // hop + 1
        starts = (hop * (self.rows.rand((len(signal),), signal.device) * frames).long()).tolist()
        return torch.stack([sound[:, start : start + length] for sound, start in zip(signal, starts, strict=True)])
