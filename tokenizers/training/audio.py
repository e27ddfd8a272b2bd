"""Stage 1 for sound: train an ``AudioCodec`` to reconstruct.

Shapes: B batch, C channels, S samples, T frames, K codebooks, V codes, D width of a code.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from maskgen.data import Batch, Source
from maskgen.tokenizers.audio.codec import AudioCodec, AudioCodecOutput
from maskgen.tokenizers.quantizers.care import rows_of_all
from maskgen.tokenizers.quantizers.usage import codebook_usage
from maskgen.tokenizers.training.losses.audio import SpectralLoss, si_sdr
from maskgen.training.distributed.whole_batch import mean_over_processes
from maskgen.training.objective import Objective

__all__ = ["CodecLossSettings", "CodecTraining"]


@dataclass(frozen=True, kw_only=True)
class CodecLossSettings:
    """Terms of the loss.

    Attributes:
        excerpt: samples of a training sound that a step sees, cut at a random frame; 0 for all of it.
        waveform_weight: of the mean absolute difference of the samples.
        spectral_weight: of ``SpectralLoss``.
        windows: its windows.
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
    waveform_weight: float = 1.0
    spectral_weight: float = 1.0
    windows: tuple[int, ...] = (2048, 1024, 512, 256, 128)
    bands: tuple[int, ...] = (160, 80, 40, 20, 10)
    linear: float = 1.0
    floor: float = 1e-5
    quantize_from: int = 100
    revive_every: int = 50
    revive_last: int = 100_000
    validation: int = 64

    def __post_init__(self) -> None:
        for name in ("excerpt", "waveform_weight", "spectral_weight", "quantize_from", "revive_every", "revive_last"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}: got {getattr(self, name)}, expected 0 or more")
        if self.validation < 1 or self.floor <= 0:
            raise ValueError(f"got validation {self.validation} and floor {self.floor}, expected positive numbers")


class CodecTraining(Objective):
    """Reconstruct sounds through the codes. Batches hold ``audio`` float ``[B, C, S]`` in [-1, 1].

    Args:
        model: the codec.
        settings: see ``CodecLossSettings``.
        held_out: sounds for validation.
        show: called as ``show(model, folder, step)`` to write sounds while training.
    """

    def __init__(
        self,
        model: AudioCodec,
        settings: CodecLossSettings,
        *,
        held_out: Source | None = None,
        show: Callable[[nn.Module, Path, int], None] | None = None,
    ) -> None:
        super().__init__(model)
        self.settings, self.held_out, self._show = settings, held_out, show
        self.spectral = SpectralLoss(
            model.sample_rate, settings.windows, settings.bands, linear=settings.linear, floor=settings.floor
        )
        self._counts = _Counts(model.num_codebooks, model.vocab_size)

    def state(self) -> nn.Module:
        """Which codes were used since the last look."""
        return self._counts

    def loss(
        self, player: str, modules: Mapping[str, nn.Module], batch: Batch, step: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Distance of the reconstruction, and the commitment; see ``maskgen.training.trainer.Objective``."""
        settings = self.settings
        audio = self._cut(batch["audio"])
        quantize = step >= settings.quantize_from
        since = step - settings.quantize_from
        if settings.revive_every and quantize and since % settings.revive_every == 0 and step <= settings.revive_last:
            self._revive(audio, all_of_them=since == 0)
        out: AudioCodecOutput = modules["model"](audio, quantize)
        fake = out.reconstruction[..., : audio.shape[-1]]
        waveform = (fake - audio).abs().mean()
        spectral = self.spectral.to(audio.device)(fake, audio)
        loss = settings.waveform_weight * waveform + settings.spectral_weight * spectral
        if quantize:
            loss = loss + out.quantized.loss
        codes = out.quantized.codes
        self._counts.to(codes.device).add(codes)
        usage = codebook_usage(codes, self.model.vocab_size)
        terms = {
            "waveform": waveform,
            "spectral": spectral,
            **out.quantized.terms,
            "codebook_perplexity": loss.new_tensor(usage.perplexity),
            "codebook_usage": loss.new_tensor(usage.share),
        }
        return loss, {name: term.detach() for name, term in terms.items()}

    def units(self, batch: Batch) -> int:
        """Tokens in the batch."""
        (frames,) = self.model.axes(batch["audio"].shape)
        return len(batch["audio"]) * int(frames) * int(self.model.num_codebooks)

    @torch.no_grad()
    def validate(self, model: nn.Module, device: torch.device) -> dict[str, float]:
        """Held-out spectral distance (``score``), SI-SDR in dB, and how evenly the codes are used."""
        if self.held_out is None:
            return {}
        count = min(len(self.held_out), self.settings.validation)
        audio = self.held_out.batch(range(count), range(count))["audio"].to(device)
        out: AudioCodecOutput = model(audio)
        fake = out.reconstruction[..., : audio.shape[-1]]
        usage = codebook_usage(out.quantized.codes, self.model.vocab_size)
        return {
            "score": float(self.spectral.to(device)(fake, audio)),
            "si_sdr": float(si_sdr(fake, audio).mean()),
            "codebook_usage": usage.share,
            "codebook_perplexity": usage.perplexity,
        }

    def show(self, model: nn.Module, folder: Path, step: int) -> None:
        """Write sounds, if the caller said how."""
        if self._show is not None:
            self._show(model, folder, step)

    def _cut(self, audio: Tensor) -> Tensor:
        length = self.settings.excerpt
        if not length or length >= audio.shape[-1]:
            return audio
        # On whole frames, as they are when a whole sound is encoded.
        (hop,) = self.model.stride
        places = (audio.shape[-1] - length) // hop + 1
        starts = (hop * (self.rows.rand((len(audio),), audio.device) * places).long()).tolist()
        return torch.stack([sound[:, start : start + length] for sound, start in zip(audio, starts, strict=True)])

    @torch.no_grad()
    def _revive(self, audio: Tensor, *, all_of_them: bool) -> None:
        """Codes that nothing is near to never learn: put them where latents are, level by level of the residual."""
        rest = self.model.latents(audio).transpose(1, 2).flatten(0, 1)
        for level in range(self.model.num_codebooks):
            used = torch.zeros_like(self._counts.used[level]) if all_of_them else self._counts.used[level]
            dead = (used == 0).nonzero()[:, 0].to(rest.device)
            if len(dead):
                self.model.replace_codes(level, dead, rows_of_all(rest, len(dead), self.rows.generator))
            table = self.model.code_tables()[level]
            rest = rest - table[torch.cdist(rest, table).argmin(1)]
        self._counts.used.zero_()


class _Counts(nn.Module):
    """How often each code was used, ``[K, V]``."""

    def __init__(self, codebooks: int, codes: int) -> None:
        super().__init__()
        self.used: Tensor
        self.register_buffer("used", torch.zeros(codebooks, codes))

    def add(self, codes: Tensor) -> None:
        """Of all processes: their codebooks must stay the same."""
        rows = codes.flatten(0, 1).t()
        counts = torch.zeros_like(self.used).scatter_add_(1, rows, torch.ones_like(rows, dtype=self.used.dtype))
        self.used += mean_over_processes(counts)
