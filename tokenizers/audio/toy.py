"""A lossless audio tokenizer without weights: for tests, ours and our users'.

Shapes: B batch, C channels, S samples, T frames, K codebooks, V = levels, L = V ** K loudness steps.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from maskgen.tokenizers.audio.base import AudioTokenizer

__all__ = ["ToyAudioTokenizer", "ToyAudioTokenizerConfig"]

_FINEST = 1 << 16  # loudness steps that float32 sums of the code tables still tell apart


@dataclass(frozen=True, kw_only=True)
class ToyAudioTokenizerConfig:
    """Settings of the toy.

    Attributes:
        sample_rate: samples a second.
        channels: C; all get the same sound.
        hop: samples a frame stands for.
        codebooks: K.
        levels: V, codes of each codebook.
    """

    sample_rate: int = 8000
    channels: int = 1
    hop: int = 4
    codebooks: int = 2
    levels: int = 16

    def __post_init__(self) -> None:
        for name in ("sample_rate", "channels", "hop", "codebooks"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: got {getattr(self, name)}, expected at least 1")
        if self.levels < 2 or self.levels**self.codebooks > _FINEST:
            raise ValueError(
                f"got {self.levels} levels in {self.codebooks} codebooks, expected 2 or more levels and at most {_FINEST} "
                "steps, which are levels ** codebooks"
            )


class ToyAudioTokenizer(AudioTokenizer):
    """One frame is one amplitude, written as a number of K digits with base V.

    The amplitudes from -1 to 1 are cut into L equal steps; a frame's mean amplitude falls into one of them, whose number is
    the token, most significant digit first. This is a residual quantizer: digit k picks among V shifts, each V times
    smaller than those of digit k - 1, and any number of leading digits gives the middle of a coarser step.

    ``decode(encode(x)) == x`` holds exactly for what ``decode`` makes: all channels equal, one value a frame. Other sound
    goes to the nearest step of each frame's mean.

    Args:
        config: settings; the defaults give 256 steps in two codebooks and frames of 4 samples at 8 kHz.
    """

    def __init__(self, config: ToyAudioTokenizerConfig) -> None:
        super().__init__()
        self.config: ToyAudioTokenizerConfig = config

    @property
    def vocab_size(self) -> int:
        """V."""
        return self.config.levels

    @property
    def num_codebooks(self) -> int:
        """K."""
        return self.config.codebooks

    @property
    def stride(self) -> tuple[int, ...]:
        """Samples a frame."""
        return (self.config.hop,)

    @property
    def sample_rate(self) -> int:
        """Samples a second."""
        return self.config.sample_rate

    @property
    def channels(self) -> int:
        """C."""
        return self.config.channels

    def code_tables(self) -> Tensor:
        """Float [K, V, 1]: the shift of each digit; a frame's amplitude is the sum over the codebooks."""
        levels = self.config.levels
        middle = (torch.arange(levels, dtype=torch.float64) + 0.5) / levels * 2 - 1
        scale = float(levels) ** -torch.arange(self.config.codebooks, dtype=torch.float64)
        return (scale[:, None, None] * middle[None, :, None]).float()

    def encode_scaled(self, signal: Tensor) -> tuple[Tensor, None]:
        """See ``AudioTokenizer``; loudness is not kept aside."""
        whole = self._to_hops(signal).float()
        levels, codebooks, hop = self.config.levels, self.config.codebooks, self.config.hop
        amplitude = whole.reshape(len(whole), self.channels, -1, hop).mean(dim=(1, 3))
        steps = levels**codebooks
        number = ((amplitude + 1) / 2 * steps).floor().long().clamp(0, steps - 1)
        digits = [number // levels ** (codebooks - 1 - place) % levels for place in range(codebooks)]
        return torch.stack(digits, dim=-1), None

    def decode(self, tokens: Tensor, axes: Sequence[int], scale: Tensor | None = None) -> Tensor:
        """See ``AudioTokenizer``; the result is float32."""
        self._check_codes(tokens, axes)
        tables = self.code_tables().to(tokens.device)
        digits = [tables[place, tokens[..., place], 0] for place in range(tokens.shape[-1])]
        sound = torch.stack(digits).sum(0)[:, None].repeat_interleave(self.config.hop, dim=-1)
        if scale is not None:
            sound = sound * scale.to(sound)[:, None, None]
        return sound.repeat(1, self.channels, 1)
