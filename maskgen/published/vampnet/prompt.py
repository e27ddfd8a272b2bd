"""VampNet's prompt: the combination of masks behind its ``build_mask`` (hugofloresgarcia/vampnet, ``interface.py``).

Shapes: B batch, N = T frames, K codebooks; masks are bool [B, N, K], True = to be decided.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from maskgen.sampling.prompts import (
    draw_uniforms,
    hide_codebooks,
    hide_frames,
    inpaint_mask,
    keep_codebooks,
    linear_mask,
    onset_mask,
    periodic_mask,
)

__all__ = ["PromptDraws", "VampPrompt"]

_CELLS, _SHIFT, _DROPPED = 0, 1, 2


@dataclass(frozen=True, kw_only=True)
class PromptDraws:
    """What chance decides of a prompt.

    Attributes:
        cells: uniform numbers ``[B, N, K]`` in [0, 1), against ``VampPrompt.hidden_share``.
        shift: long ``[B]``, frames by which the periodic mask is turned.
        dropped: long ``[B, n]``, kept frames that are hidden all the same; n may be 0.
    """

    cells: Tensor
    shift: Tensor
    dropped: Tensor


@dataclass(frozen=True, kw_only=True)
class VampPrompt:
    """VampNet's prompt; its defaults are those of the official application, "compression" with a period of 7.

    A cell is given if it lies in prefix or suffix, near a period or an onset, or was not drawn to be hidden. Then dropped
    frames are hidden, then ``keep`` codebooks given and, last, codebooks from ``hide_from`` on hidden.

    Attributes:
        prefix: frames given at the start.
        suffix: frames given at the end.
        period: see ``periodic_mask``; 0 gives none.
        width: see ``periodic_mask``.
        onset_width: see ``onset_mask``; 0 gives none.
        hidden_share: chance of a cell to be hidden at all (official ``rand_mask_intensity``).
        dropout: int(dropout N) frames are drawn, with replacement, and hidden.
        keep: codebooks given in full, from the coarsest (official ``ncc``).
        hide_from: codebooks from here on are hidden (official ``upper_codebook_mask``).
    """

    prefix: int = 0
    suffix: int = 0
    period: int = 7
    width: int = 1
    onset_width: int = 0
    hidden_share: float = 1.0
    dropout: float = 0.0
    keep: int = 0
    hide_from: int = 3

    def __post_init__(self) -> None:
        for name in ("prefix", "suffix", "period", "onset_width", "keep", "hide_from"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}: got {getattr(self, name)}, expected 0 or more")
        for name in ("hidden_share", "dropout"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}: got {getattr(self, name)}, expected a share in [0, 1]")
        if self.width < 1:
            raise ValueError(f"width: got {self.width}, expected at least 1 frame")

    def draw(self, shape: Sequence[int], seeds: Sequence[int]) -> PromptDraws:
        """Draw what chance decides, from each item's own seed.

        Args:
            shape: (B, N, K).
            seeds: one integer an item.

        Raises:
            ValueError: not one seed an item.
        """
        rows, frames, _ = shape
        shift = draw_uniforms((rows,), seeds, _SHIFT).double() * self.period
        dropped = draw_uniforms((rows, int(frames * self.dropout)), seeds, _DROPPED).double() * frames
        return PromptDraws(cells=draw_uniforms(shape, seeds, _CELLS), shift=shift.long(), dropped=dropped.long())

    def mask(self, draws: PromptDraws, onsets: Sequence[int] = ()) -> Tensor:
        """The mask of a draw.

        Args:
            draws: see ``PromptDraws``.
            onsets: frames in which a sound begins; used with ``onset_width``.

        Returns:
            bool ``[B, N, K]``.
        """
        shape = draws.cells.shape
        mask = linear_mask(draws.cells, self.hidden_share) & inpaint_mask(shape, self.prefix, self.suffix)
        mask = mask & periodic_mask(shape, self.period, self.width, draws.shift)
        if self.onset_width:
            mask = mask & onset_mask(shape, onsets, self.onset_width)
        mask = hide_frames(mask, draws.dropped)
        return hide_codebooks(keep_codebooks(mask, self.keep), self.hide_from)
