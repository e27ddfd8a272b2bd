"""VampNet's prompt: the combination of masks behind its ``build_mask`` (hugofloresgarcia/vampnet, ``interface.py``).

Shapes: B batch, N = T frames, K codebooks; masks are bool [B, N, K], True = to be decided.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from maskgen.sampling.prompts import (
    inpaint_mask,
    keep_codebooks,
    linear_mask,
    mask_codebooks,
    mask_frames,
    onset_mask,
    periodic_mask,
    seeded_uniforms,
)

_TOKENS, _SHIFT, _DROPPED = 0, 1, 2


@dataclass(frozen=True, kw_only=True)
class PromptNoise:
    """What chance decides of a prompt.

    Attributes:
        tokens: uniform numbers ``[B, N, K]`` in [0, 1), against ``VampPrompt.masked_share``.
        shift: long ``[B]``, frames by which the periodic mask is turned.
        dropped: long ``[B, n]``, kept frames that are masked all the same; n may be 0.
    """

    tokens: Tensor
    shift: Tensor
    dropped: Tensor


@dataclass(frozen=True, kw_only=True)
class VampPrompt:
    """VampNet's prompt; its defaults are those of the official application, "compression" with a period of 7.

    A token is given if it lies in prefix or suffix, near a period or an onset, or was not among those to be masked at all.
    Then dropped frames are masked, then ``keep`` codebooks given and, last, codebooks from ``mask_from`` on masked.

    Attributes:
        prefix: frames given at the start.
        suffix: frames given at the end.
        period: see ``periodic_mask``; 0 gives none.
        width: see ``periodic_mask``.
        onset_width: see ``onset_mask``; 0 gives none.
        masked_share: chance of a token to be masked at all (official ``rand_mask_intensity``).
        dropout: int(dropout N) frames are chosen, with replacement, and masked.
        keep: codebooks given in full, from the coarsest (official ``ncc``).
        mask_from: codebooks from here on are masked (official ``upper_codebook_mask``).
    """

    prefix: int = 0
    suffix: int = 0
    period: int = 7
    width: int = 1
    onset_width: int = 0
    masked_share: float = 1.0
    dropout: float = 0.0
    keep: int = 0
    mask_from: int = 3

    def __post_init__(self) -> None:
        for name in ("prefix", "suffix", "period", "onset_width", "keep", "mask_from"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}: got {getattr(self, name)}, expected 0 or more")
        for name in ("masked_share", "dropout"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}: got {getattr(self, name)}, expected a share in [0, 1]")
        if self.width < 1:
            raise ValueError(f"width: got {self.width}, expected at least 1 frame")

    def noise(self, shape: Sequence[int], seeds: Sequence[int]) -> PromptNoise:
        """What chance decides, from each item's own seed.

        Args:
            shape: (B, N, K).
            seeds: one integer an item.

        Raises:
            ValueError: not one seed an item.
        """
        rows, frames, _ = shape
        shift = seeded_uniforms((rows,), seeds, _SHIFT).double() * self.period
        dropped = seeded_uniforms((rows, int(frames * self.dropout)), seeds, _DROPPED).double() * frames
        return PromptNoise(tokens=seeded_uniforms(shape, seeds, _TOKENS), shift=shift.long(), dropped=dropped.long())

    def mask(self, noise: PromptNoise, onsets: Sequence[int] = ()) -> Tensor:
        """The mask that chance has decided.

        Args:
            noise: see ``PromptNoise``.
            onsets: frames in which a sound begins; used with ``onset_width``.

        Returns:
            bool ``[B, N, K]``.
        """
        shape = noise.tokens.shape
        mask = linear_mask(noise.tokens, self.masked_share) & inpaint_mask(shape, self.prefix, self.suffix)
        mask = mask & periodic_mask(shape, self.period, self.width, noise.shift)
        if self.onset_width:
            mask = mask & onset_mask(shape, onsets, self.onset_width)
        mask = mask_frames(mask, noise.dropped)
        return mask_codebooks(keep_codebooks(mask, self.keep), self.mask_from)
