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
from maskgen.tokenizers.audio_codec import AudioCodec, AudioCodecOutput
from maskgen.tokenizers.audio_losses import SpectralLoss, si_sdr
from maskgen.tokenizers.usage import codebook_usage
from maskgen.trainer import Objective

__all__ = ["CodecLossSettings", "CodecTraining"]


@dataclass(frozen=True, kw_only=True)
class CodecLossSettings:
    """Terms of the loss.

    Attributes:
        excerpt: samples of a training sound that a step sees, cut at random; 0 for all of it.
        waveform_weight: of the mean absolute difference of the samples.
        spectral_weight: of ``SpectralLoss``.
        windows: its windows.
        bands: its mel bands, one number a window.
        revive_every: steps between looks at the codebooks: codes not used since the last look are moved onto random
            latents. The first look is at step 0, so that codebooks begin as latents. 0 = never.
        revive_until: share of the training after which codes stay where they are; needs ``steps`` below.
        validation: how many held-out sounds a validation takes at most.
    """

    excerpt: int = 0
    waveform_weight: float = 1.0
    spectral_weight: float = 1.0
    windows: tuple[int, ...] = (2048, 1024, 512, 256, 128)
    bands: tuple[int, ...] = (160, 80, 40, 20, 10)
    linear: float = 1.0
    floor: float = 1e-5
    revive_every: int = 50
    quantize_from: int = 100
    revive_last: int = 100_000
    validation: int = 64


class CodecTraining(Objective):
    def __init__(self, model, settings, *, held_out=None, show=None):
        super().__init__(model)
        self.settings, self.held_out, self._show = settings, held_out, show
        self.spectral = SpectralLoss(model.sample_rate, settings.windows, settings.bands, linear=settings.linear, floor=settings.floor)
        self.used = torch.zeros(model.num_codebooks, model.vocab_size)

    def loss(self, player, modules, batch, step):
        s = self.settings
        audio = self._cut(batch["audio"])
        on = step >= s.quantize_from
        if (
            s.revive_every
            and step >= s.quantize_from
            and (step - s.quantize_from) % s.revive_every == 0
            and step <= s.revive_last
        ):
            self._revive(audio, step - s.quantize_from)
        out = modules["model"](audio, on)
        fake = out.reconstruction[..., : audio.shape[-1]]
        wave = (fake - audio).abs().mean()
        spec = self.spectral(fake, audio)
        loss = s.waveform_weight * wave + s.spectral_weight * spec + on * out.quantized.loss
        codes = out.quantized.codes
        self.used.scatter_add_(1, codes.flatten(0, 1).t(), torch.ones(codes.shape[2], codes.shape[0] * codes.shape[1]))
        usage = codebook_usage(codes, self.model.vocab_size)
        terms = {
            "waveform": wave,
            "spectral": spec,
            **out.quantized.terms,
            "codebook_perplexity": loss.new_tensor(usage.perplexity),
        }
        return loss, {k: v.detach() for k, v in terms.items()}

    def _cut(self, audio):
        n = self.settings.excerpt
        if not n or n >= audio.shape[-1]:
            return audio
        start = torch.randint(audio.shape[-1] - n + 1, (len(audio),))
        return torch.stack([a[:, i : i + n] for a, i in zip(audio, start.tolist())])

    @torch.no_grad()
    def _revive(self, audio, step):
        m = self.model
        lat = m.latents(audio).transpose(1, 2).flatten(0, 1)
        res = lat.clone()
        tot = 0
        for k in range(m.num_codebooks):
            dead = (self.used[k] == 0).nonzero()[:, 0] if step else torch.arange(m.vocab_size)
            pick = torch.randint(len(res), (len(dead),))
            if len(dead):
                m.replace_codes(k, dead, res[pick])
            tot += len(dead)
            table = m.code_tables()[k]
            res = res - table[torch.cdist(res, table).argmin(1)]
        self.used.zero_()

    def units(self, batch):
        return len(batch["audio"]) * self.model.axes(batch["audio"].shape)[0] * self.model.num_codebooks

    @torch.no_grad()
    def validate(self, model, device):
        if self.held_out is None:
            return {}
        n = min(len(self.held_out), self.settings.validation)
        a = self.held_out.batch(range(n), range(n))["audio"]
        out = model(a)
        fake = out.reconstruction[..., : a.shape[-1]]
        u = codebook_usage(out.quantized.codes, model.vocab_size)
        return {
            "score": float(self.spectral(fake, a)),
            "si_sdr": float(si_sdr(fake, a).mean()),
            "usage": u.share,
            "perplexity": u.perplexity,
        }
