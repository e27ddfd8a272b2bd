"""Prompts: which tokens of a sound are given, and which are to be decided (VampNet, Garcia et al. 2023, arXiv 2307.04686).

A prompt is a mask. What is left visible steers the result: its start and end (continuation, inpainting), every P-th frame
(periodic), frames around beats or onsets, or the coarse codebooks alone (compression). Masks combine by ``&``, which keeps
what either keeps (official ``mask_and``), and by ``|``, which masks what either masks (``mask_or``).

Nothing here is random by itself: random masks take uniform numbers, so that the rule is exact and chance is the caller's.
``seeded_uniforms`` makes them from one seed an item. VampNet's own combination is ``maskgen.published.vampnet.prompt``.

Better than official here: an onset nearer than its width to the start keeps its frames (there a negative slice wraps around
and the onset is lost); every item has its own random numbers where official items share them; ``linear_mask`` takes one
share an item.

Shapes: B batch, N = T frames, K codebooks; masks are bool [B, N, K], True = to be decided.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from einops import repeat
from torch import Tensor

from maskgen.noise import SeededNoise, check_seeds

__all__ = [
    "beat_mask",
    "inpaint_mask",
    "keep_codebooks",
    "linear_mask",
    "mask_codebooks",
    "mask_frames",
    "onset_mask",
    "periodic_mask",
    "seeded_uniforms",
    "stretch_mask",
]

_PROMPT = 4  # stream of the noise that no sampler uses


def seeded_uniforms(shape: Sequence[int], seeds: Sequence[int], stream: int = 0) -> Tensor:
    """Uniform numbers in (0, 1), float32 of ``shape`` ``[B, ...]`` on the CPU; an item's numbers depend on its seed alone.

    Args:
        shape: what is wanted, B first.
        seeds: one integer an item.
        stream: another number gives other uniforms from the same seeds.

    Raises:
        ValueError: not one seed an item, or a negative ``stream``.
    """
    if stream < 0:
        raise ValueError(f"stream: got {stream}, expected 0 or more")
    return SeededNoise(check_seeds(seeds, shape[0])).uniform(_PROMPT, stream, shape)


def linear_mask(uniforms: Tensor, share: float | Tensor) -> Tensor:
    """Mask each token with probability ``share`` (official ``linear_random``).

    Args:
        uniforms: ``[B, N, K]`` in [0, 1).
        share: in [0, 1], one number or ``[B]``.

    Returns:
        bool ``[B, N, K]``.

    Raises:
        ValueError: a share out of range.
    """
    return uniforms < _rows(share, "share", uniforms)[:, None, None]


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
        shift: frames by which the mask is turned to the right, around its end, one number or ``[B]``; VampNet takes it
            from 0 .. P - 1 at random.

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
    """The mask of tokens whose every frame stands ``factor`` times in a row: new frames are masked (VampNet's time stretch).

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
    longer = repeat(mask, "B N K -> B (N f) K", f=factor)
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
        thin: share of these frames that is masked all the same, in [0, 1].
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
        raise ValueError(f"thin: got {thin} without uniforms; give seeded_uniforms((B, N), seeds)")
    return ~(kept & (uniforms < 1 - _rows(thin, "thin", uniforms)[:, None])[:, :, None])


def keep_codebooks(mask: Tensor, count: int) -> Tensor:
    """The mask with the first ``count`` codebooks given (official ``codebook_unmask``)."""
    return mask & (torch.arange(mask.shape[2], device=mask.device) >= count)


def mask_codebooks(mask: Tensor, first: int) -> Tensor:
    """The mask with codebooks ``first`` and finer to be decided (official ``codebook_mask``)."""
    return mask | (torch.arange(mask.shape[2], device=mask.device) >= first)


def mask_frames(mask: Tensor, frames: Tensor) -> Tensor:
    """The mask with these frames to be decided in all codebooks (official ``dropout``, which may repeat frames).

    Args:
        mask: bool ``[B, N, K]``.
        frames: long ``[B, n]``, each in [0, N); n may be 0.

    Returns:
        bool ``[B, N, K]``.
    """
    masked = torch.zeros(mask.shape[:2], dtype=torch.bool, device=mask.device)
    return mask | masked.scatter(1, frames, True)[:, :, None]


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


def _over(frames: Tensor, shape: Sequence[int]) -> Tensor:
    """A mask of frames, [N] or [B, N], copied to rows and codebooks."""
    return repeat(frames.expand(shape[0], shape[1]), "B N -> B N K", K=shape[2])


def _near(shape: Sequence[int], frames: Sequence[int], before: int, after: int) -> Tensor:
    """Tokens in [f - before, f + after) for one of the frames f."""
    at, centres = torch.arange(_grid(shape)[1])[:, None], torch.tensor(list(frames), dtype=torch.long)
    return _over(((at >= centres - before) & (at < centres + after)).any(1), shape)
