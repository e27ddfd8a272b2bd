"""A lossless audio tokenizer without weights: for tests, ours and our users'.

Shapes: B batch, C channels, S samples, T frames, K codebooks, V = levels, L = V ** K loudness steps.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from einops import rearrange, repeat
from torch import Tensor

from maskgen.tokenizers.audio.base import ConfiguredCodec
from maskgen.tokenizers.settings import check_least

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
        check_least(self, sample_rate=1, channels=1, hop=1, codebooks=1)
        if self.levels < 2 or self.levels**self.codebooks > _FINEST:
            raise ValueError(
                f"got {self.levels} levels in {self.codebooks} codebooks, expected 2 or more levels and at most {_FINEST} "
                "steps, which are levels ** codebooks"
            )


class ToyAudioTokenizer(ConfiguredCodec):
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

    def code_tables(self) -> Tensor:
        """Float [K, V, 1]: the shift of each digit; a frame's amplitude is the sum over the codebooks."""
        levels = self.config.levels
        middle = (torch.arange(levels, dtype=torch.float64) + 0.5) / levels * 2 - 1
        scale = float(levels) ** -torch.arange(self.config.codebooks, dtype=torch.float64)
        return (scale[:, None, None] * middle[None, :, None]).float()

    def encode_scaled(self, signal: Tensor) -> tuple[Tensor, None]:
        """See ``AudioTokenizer``; loudness is not kept aside."""
        whole = self._to_hops(signal).float()
        levels, codebooks = self.config.levels, self.config.codebooks
        amplitude = rearrange(whole, "b c (t hop) -> b c t hop", hop=self.config.hop).mean(dim=(1, 3))
        steps = levels**codebooks
        number = ((amplitude + 1) / 2 * steps).floor().long().clamp(0, steps - 1)
        digits = [number // levels ** (codebooks - 1 - digit) % levels for digit in range(codebooks)]
        return torch.stack(digits, dim=-1), None

    def decode(self, tokens: Tensor, axes: Sequence[int], scale: Tensor | None = None) -> Tensor:
        """See ``AudioTokenizer``; the result is float32."""
        self._check_codes(tokens, axes)
        tables = self.code_tables().to(tokens.device)
        digits = [tables[digit, ids, 0] for digit, ids in enumerate(tokens.unbind(-1))]
        amplitude = torch.stack(digits).sum(0)
        sound = repeat(amplitude, "b t -> b c (t hop)", c=self.channels, hop=self.config.hop)
        return sound if scale is None else sound * scale.to(sound)[:, None, None]
