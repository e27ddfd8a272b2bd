"""Prompts: which tokens of a sound are given, and which are to be decided (VampNet, Garcia et al. 2023, arXiv 2307.04686).

A prompt is a mask. What is left visible steers the result: its start and end (continuation, inpainting), every P-th frame
(periodic), frames around beats or onsets, or the coarse codebooks alone (compression). Masks combine by ``&``, which keeps
what either keeps (official ``mask_and``), and by ``|``, which hides what either hides (``mask_or``).

Nothing here draws by itself: random masks take uniform numbers, so that the rule is exact and the draw is the caller's.
``draw_uniforms`` makes them from one seed an item. VampNet's own combination is ``maskgen.published.vampnet.prompt``.

Better than official here: an onset nearer than its width to the start keeps its frames (there a negative slice wraps around
and the onset is lost); every item has its own random numbers where official items share them; ``linear_mask`` takes one
share an item.

Shapes: B batch, N = T frames, K codebooks; masks are bool [B, N, K], True = to be decided.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from maskgen.noise import SeededNoise, check_seeds

__all__ = [
    "beat_mask",
    "cosine_mask",
    "draw_uniforms",
    "empty_mask",
    "frame_mask",
    "full_mask",
    "hide_codebooks",
    "hide_frames",
    "inpaint_mask",
    "keep_codebooks",
    "level_mask",
    "linear_mask",
    "lowest_level_mask",
    "onset_mask",
    "periodic_mask",
    "prefix_share_mask",
    "reveal_share",
    "stretch_mask",
]

_PROMPT = 4  # stream of the noise that no sampler uses


def draw_uniforms(shape: Sequence[int], seeds: Sequence[int], draw: int = 0) -> Tensor:
    """Uniform numbers in (0, 1), float32 of ``shape`` ``[B, ...]`` on the CPU; an item's numbers depend on its seed alone.

    Args:
        shape: what is wanted, B first.
        seeds: one integer an item.
        draw: another number gives other uniforms from the same seeds.

    Raises:
        ValueError: not one seed an item, or a negative ``draw``.
    """
    if draw < 0:
        raise ValueError(f"draw: got {draw}, expected 0 or more")
    return SeededNoise(check_seeds(seeds, shape[0])).uniform(_PROMPT, draw, shape)


def full_mask(shape: Sequence[int]) -> Tensor:
    """Everything is to be decided: bool ``[B, N, K]``."""
    return torch.ones(_grid(shape), dtype=torch.bool)


def empty_mask(shape: Sequence[int]) -> Tensor:
    """Everything is given: bool ``[B, N, K]``."""
    return torch.zeros(_grid(shape), dtype=torch.bool)


def linear_mask(uniforms: Tensor, share: float | Tensor) -> Tensor:
    """Hide each cell with probability ``share`` (official ``linear_random``).

    Args:
        uniforms: ``[B, N, K]`` in [0, 1).
        share: in [0, 1], one number or ``[B]``.

    Returns:
        bool ``[B, N, K]``.

    Raises:
        ValueError: a share out of range.
    """
    return uniforms < _rows(share, "share", uniforms)[:, None, None]


def cosine_mask(uniforms: Tensor, ratio: float | Tensor) -> Tensor:
    """Hide each cell with probability cos(pi r / 2), VampNet's training mask (official ``random``).

    Args:
        uniforms: ``[B, N, K]`` in [0, 1).
        ratio: r in [0, 1], one number or ``[B]``.

    Returns:
        bool ``[B, N, K]``.

    Raises:
        ValueError: a ratio out of range.
    """
    return uniforms < _cosine(_rows(ratio, "ratio", uniforms))[:, None, None]


def frame_mask(uniforms: Tensor, ratio: float | Tensor, codebooks: int) -> Tensor:
    """Hide whole frames with probability cos(pi r / 2) (official ``random_along_time``).

    Args:
        uniforms: ``[B, N]`` in [0, 1).
        ratio: r in [0, 1], one number or ``[B]``.
        codebooks: K.

    Returns:
        bool ``[B, N, K]``.

    Raises:
        ValueError: a ratio out of range.
    """
    hidden = uniforms < _cosine(_rows(ratio, "ratio", uniforms))[:, None]
    return hidden[:, :, None].repeat(1, 1, codebooks)


def inpaint_mask(shape: Sequence[int], prefix: int = 0, suffix: int = 0) -> Tensor:
    """Keep the first ``prefix`` and the last ``suffix`` frames.

    Args:
        shape: (B, N, K).
        prefix: frames.
        suffix: frames.

    Returns:
        bool ``[B, N, K]``.

    Raises:
        ValueError: a negative number of frames.
    """
    if prefix < 0 or suffix < 0:
        raise ValueError(f"prefix and suffix: got {prefix} and {suffix}, expected 0 frames or more")
    frames = _grid(shape)[1]
    at = torch.arange(frames)
    return _over((at >= prefix) & (at < frames - suffix), shape)


def periodic_mask(shape: Sequence[int], period: int | Tensor, width: int = 1, shift: int | Tensor = 0) -> Tensor:
    """Keep the frames around every P-th one: j - w // 2 .. j + w // 2 for each multiple j of P below N.

    The kept width is thus odd: 2 and 3 are the same.

    Args:
        shape: (B, N, K).
        period: P, one number or ``[B]``; 1 keeps everything, 0 nothing.
        width: w in frames, at least 1.
        shift: frames by which the mask is turned to the right, around its end, one number or ``[B]``; VampNet draws it from
            0 .. P - 1.

    Returns:
        bool ``[B, N, K]``.

    Raises:
        ValueError: a negative period, or a width under 1.
    """
    rows, frames, _ = _grid(shape)
    periods, shifts = (torch.as_tensor(value).expand(rows)[:, None] for value in (period, shift))
    if bool((periods < 0).any()) or width < 1:
        raise ValueError(
            f"periodic: got period {period} and width {width}, expected period of 0 or more, width of 1 or more"
        )
    at = (torch.arange(frames) - shifts) % frames
    cycle = periods.clamp(min=1)
    before, half = at % cycle, width // 2
    after = cycle - before
    kept = (before <= half) | ((after <= half) & (at + after < frames))
    return _over(~kept | (periods == 0), shape)


def stretch_mask(mask: Tensor, factor: int) -> Tensor:
    """The mask of tokens whose every frame stands ``factor`` times in a row: new frames are hidden (VampNet's time stretch).

    Args:
        mask: bool ``[B, N, K]``.
        factor: f, at least 1.

    Returns:
        bool ``[B, N f, K]``.

    Raises:
        ValueError: factor < 1.
    """
    if factor < 1:
        raise ValueError(f"factor: got {factor}, expected at least 1")
    longer = mask.repeat_interleave(factor, dim=1)
    return longer | periodic_mask(longer.shape, factor).to(mask.device)


def onset_mask(shape: Sequence[int], frames: Sequence[int], width: int) -> Tensor:
    """Keep the frames f - w .. f + w - 1 around every onset f.

    Args:
        shape: (B, N, K).
        frames: onsets.
        width: w in frames, at least 1.

    Returns:
        bool ``[B, N, K]``.

    Raises:
        ValueError: width < 1.
    """
    if width < 1:
        raise ValueError(f"onset width: got {width}, expected at least 1 frame")
    return ~_near(shape, frames, width, width)


def beat_mask(
    shape: Sequence[int],
    beats: Sequence[int],
    before: int = 0,
    after: int = 2,
    *,
    thin: float = 0.0,
    uniforms: Tensor | None = None,
) -> Tensor:
    """Keep the frames b - before .. b + after - 1 around every beat b.

    Args:
        shape: (B, N, K).
        beats: frames of the beats; downbeats alone, or every second one, are slices of this list.
        before: frames.
        after: frames; VampNet's 0.02 s are 2 frames at 100 frames a second.
        thin: share of these frames that is hidden all the same, in [0, 1].
        uniforms: ``[B, N]`` in [0, 1), which frames those are; needed where ``thin`` is not 0.

    Returns:
        bool ``[B, N, K]``.

    Raises:
        ValueError: a negative number of frames, ``thin`` out of range or without ``uniforms``.
    """
    if before < 0 or after < 0:
        raise ValueError(f"before and after: got {before} and {after}, expected 0 frames or more")
    kept = _near(shape, beats, before, after)
    if not thin:
        return ~kept
    if uniforms is None:
        raise ValueError(f"thin: got {thin} without uniforms; give draw_uniforms((B, N), seeds)")
    return ~(kept & (uniforms < 1 - _rows(thin, "thin", uniforms)[:, None])[:, :, None])


def keep_codebooks(mask: Tensor, count: int) -> Tensor:
    """The mask with the first ``count`` codebooks given (official ``codebook_unmask``)."""
    return mask & (torch.arange(mask.shape[2], device=mask.device) >= count)


def hide_codebooks(mask: Tensor, first: int) -> Tensor:
    """The mask with codebooks ``first`` and finer to be decided (official ``codebook_mask``)."""
    return mask | (torch.arange(mask.shape[2], device=mask.device) >= first)


def hide_frames(mask: Tensor, frames: Tensor) -> Tensor:
    """The mask with these frames to be decided in all codebooks (official ``dropout``, which draws frames more than once).

    Args:
        mask: bool ``[B, N, K]``.
        frames: long ``[B, n]``, each in [0, N); n may be 0.

    Returns:
        bool ``[B, N, K]``.
    """
    hidden = torch.zeros(mask.shape[:2], dtype=torch.bool, device=mask.device)
    return mask | hidden.scatter(1, frames, True)[:, :, None]


def reveal_share(mask: Tensor, share: float, uniforms: Tensor) -> Tensor:
    """Give int(share n) of the n hidden cells of each row, those with the smallest uniforms (official ``drop_ones``).

    Args:
        mask: bool ``[B, N, K]``.
        share: in [0, 1].
        uniforms: ``[B, N, K]``.

    Returns:
        bool ``[B, N, K]``.

    Raises:
        ValueError: a share out of range.
    """
    _rows(share, "share", uniforms)
    turns = uniforms.masked_fill(~mask, torch.inf).flatten(1).argsort(dim=1, stable=True).argsort(dim=1)
    given = torch.tensor([int(count * share) for count in mask.flatten(1).sum(1).tolist()], device=mask.device)
    return mask & (turns >= given[:, None]).view_as(mask)


def prefix_share_mask(uniforms: Tensor, shape: Sequence[int], low: float = 0.1, high: float = 0.4) -> Tensor:
    """Keep a random share of the sound, its beginning: int((low + (high - low) u) N) frames (official ``tria_mask``).

    Args:
        uniforms: ``[B]`` in [0, 1).
        shape: (B, N, K).
        low: smallest share.
        high: largest share.

    Returns:
        bool ``[B, N, K]``.

    Raises:
        ValueError: shares that are not 0 <= low <= high <= 1.
    """
    if not 0 <= low <= high <= 1:
        raise ValueError(f"prefix share: got {low} to {high}, expected 0 <= low <= high <= 1")
    rows, frames, _ = _grid(shape)
    prefix = ((low + (high - low) * uniforms) * frames).long()
    return _over(torch.arange(frames, device=uniforms.device) >= prefix.expand(rows)[:, None], shape)


def level_mask(levels: Tensor, uniforms: Tensor, share: float | Tensor, codebooks: int) -> tuple[Tensor, Tensor]:
    """A training mask for decoding codebook by codebook (official ``stemgen_random``): one level of each row is learned.

    Args:
        levels: long ``[B]`` in [0, K): coarser codebooks are given, finer ones hidden.
        uniforms: ``[B, N]`` in [0, 1).
        share: of the level's frames that are hidden, in [0, 1], one number or ``[B]``.
        codebooks: K.

    Returns:
        bool ``[B, N, K]`` twice: what is hidden, and what of it counts for the loss.

    Raises:
        ValueError: a share out of range.
    """
    number = torch.arange(codebooks, device=uniforms.device)
    level = levels[:, None, None]
    drawn = (uniforms < _rows(share, "share", uniforms)[:, None])[:, :, None]
    learned = drawn & (number == level)
    return learned | (number > level), learned


def lowest_level_mask(uniforms: Tensor, ratio: float | Tensor) -> tuple[Tensor, Tensor]:
    """A training mask that hides the finest codebooks of each frame, as many as draws fall under cos(pi r / 2).

    Official ``hugo_random``: a frame is given down to some level, and the loss is on the coarsest hidden one alone.

    Args:
        uniforms: ``[B, N, K]`` in [0, 1).
        ratio: r in [0, 1], one number or ``[B]``.

    Returns:
        bool ``[B, N, K]`` twice: what is hidden, and what of it counts for the loss.

    Raises:
        ValueError: a ratio out of range.
    """
    given = uniforms.shape[2] - cosine_mask(uniforms, ratio).sum(2, keepdim=True)
    number = torch.arange(uniforms.shape[2], device=uniforms.device)
    return number >= given, number == given


def _grid(shape: Sequence[int]) -> tuple[int, int, int]:
    if len(shape) != 3 or min(shape) < 1:
        raise ValueError(f"prompt: got shape {tuple(shape)}, expected (B, N, K): items, frames and codebooks")
    return shape[0], shape[1], shape[2]


def _rows(value: float | Tensor, name: str, uniforms: Tensor) -> Tensor:
    """Numbers in [0, 1], one a row: float32 [B]."""
    rows = torch.as_tensor(value, dtype=torch.float32, device=uniforms.device).expand(len(uniforms))
    if not bool(((rows >= 0) & (rows <= 1)).all()):
        raise ValueError(f"{name}: got {value}, expected numbers in [0, 1]")
    return rows


def _cosine(ratio: Tensor) -> Tensor:
    return torch.cos(ratio * math.pi / 2).clamp(1e-10, 1.0)


def _over(frames: Tensor, shape: Sequence[int]) -> Tensor:
    """A mask of frames, [N] or [B, N], copied to rows and codebooks."""
    return frames.expand(shape[0], shape[1])[:, :, None].repeat(1, 1, shape[2])


def _near(shape: Sequence[int], frames: Sequence[int], before: int, after: int) -> Tensor:
    """Cells in [f - before, f + after) for one of the frames f."""
    at, centres = torch.arange(_grid(shape)[1])[:, None], torch.tensor(list(frames), dtype=torch.long)
    return _over(((at >= centres - before) & (at < centres + after)).any(1), shape)
