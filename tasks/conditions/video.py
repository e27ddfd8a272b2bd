"""What of a clip is given in each of MAGVIT's tasks, how the rest is padded, and which tokens that makes (COMMIT).

The given part of a clip is padded to a whole clip and tokenised like one (Yu et al. 2023, arXiv 2212.05199, sections 3.2
and 3.3). A task therefore says three things: which pixels are given, what stands in their place elsewhere, and whose tokens
the model is shown as a draft. Regions and paddings are those of the official code; the frames a token stands for are asked
of the tokenizer, since some give the first frame a token of its own.

Shapes: B batch, T frames, H W pixels, t h w token grid.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from types import MappingProxyType
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from maskgen.sampling.commit import Prompt
from maskgen.tokenizers.video.base import VideoTokenizer, check_video

__all__ = ["VIDEO_TASKS", "TokenCells", "VideoCondition", "VideoTask", "condition_from_mask", "spread_edges"]

Region = Literal["none", "first", "ends", "latent", "central", "vertical", "horizontal", "strip", "window", "quarter"]

Padding = Literal["time", "edge", "black", "clip"]


@dataclass(frozen=True, kw_only=True)
class VideoCondition:
    """The given part of a batch of clips.

    Attributes:
        clip: float ``[B, 3, T, H, W]``, the given pixels, padded; what lies outside of them does not show in it.
        pixels: bool ``[1, 1, T, H, W]``, True where a pixel is given.
        tokens: bool ``[t, h, w]``, True where the condition's token is a draft for the model.
    """

    clip: Tensor
    pixels: Tensor
    tokens: Tensor


@dataclass(frozen=True, kw_only=True)
class TokenCells:
    """Which part of a clip each token stands for.

    Attributes:
        frames: first frame of each token frame and, at the end, T: t + 1 ascending numbers from 0.
        rows: likewise for rows of pixels, h + 1 numbers.
        columns: likewise, w + 1 numbers.
    """

    frames: tuple[int, ...]
    rows: tuple[int, ...]
    columns: tuple[int, ...]

    def __post_init__(self) -> None:
        for name, edges in (("frames", self.frames), ("rows", self.rows), ("columns", self.columns)):
            if len(edges) < 2 or edges[0] != 0 or any(after <= before for before, after in pairwise(edges)):
                raise ValueError(f"TokenCells: got {name} {edges}, expected ascending numbers from 0, two or more")

    @classmethod
    def of(cls, tokenizer: VideoTokenizer, signal_shape: Sequence[int]) -> TokenCells:
        """The cells of a tokenizer, those whose first frame has tokens of its own included.

        Args:
            tokenizer: says how many frames a number of token frames becomes, from which follows whose they are.
            signal_shape: ``[B, 3, T, H, W]``.

        Raises:
            ValueError: no such batch, or a length the tokenizer cannot take.
        """
        latents, *sides = tokenizer.axes(signal_shape)
        edges = [
            0,
            *(min(tokenizer.decoded_frames(count), signal_shape[2]) for count in range(1, latents)),
            signal_shape[2],
        ]
        rows, columns = (
            tuple(min(cell * stride, length) for cell in range(side + 1))
            for side, stride, length in zip(sides, tokenizer.stride[1:], signal_shape[3:], strict=True)
        )
        return cls(frames=tuple(edges), rows=rows, columns=columns)

    @classmethod
    def even(cls, axes: Sequence[int], size: Sequence[int]) -> TokenCells:
        """Cells of one size: grid (t, h, w) over a clip of size (T, H, W); the last of an axis may be smaller."""
        strides = [-(-length // count) for length, count in zip(size, axes, strict=True)]
        frames, rows, columns = (
            tuple(min(cell * stride, length) for cell in range(count + 1))
            for count, stride, length in zip(axes, strides, size, strict=True)
        )
        return cls(frames=frames, rows=rows, columns=columns)

    @property
    def axes(self) -> tuple[int, int, int]:
        """Token grid (t, h, w)."""
        return len(self.frames) - 1, len(self.rows) - 1, len(self.columns) - 1

    @property
    def size(self) -> tuple[int, int, int]:
        """(T, H, W)."""
        return self.frames[-1], self.rows[-1], self.columns[-1]

    def holding(self, pixels: Tensor) -> Tensor:
        """Tokens whose cell holds at least one given pixel (the paper's rule).

        Args:
            pixels: bool ``[T, H, W]``.

        Returns:
            bool ``[t, h, w]``.
        """
        found = pixels.cpu().numpy()
        for axis, edges in enumerate((self.frames, self.rows, self.columns)):
            found = np.logical_or.reduceat(found, edges[:-1], axis=axis)
        return torch.from_numpy(found)


@dataclass(frozen=True, kw_only=True)
class VideoTask:
    """One of MAGVIT's tasks.

    Attributes:
        kind: the prompt that stands for it.
        region: what is given. ``first``: frames at the start; ``ends``: at the start and the end; ``latent``: no pixels, but
            the first token frames of the whole clip; ``central``: the middle half of rows and columns; ``vertical``,
            ``horizontal``: the middle half of columns, of rows; ``strip``: half the columns, moving from left to right;
            ``window``: the middle half of rows of that strip; ``quarter``: the upper left; ``none``: nothing.
        missing: the region is what is missing instead (inpainting).
        padding: ``time``: frames between given ones are faded from one to the other, those beyond repeat the nearest;
            ``edge``: the nearest pixel of the region; ``black``; ``clip``: none, the clip itself.
        frames: given at each end, for the regions of frames.
        latent_frames: token frames at each end that are drafts; None for those that hold at least one given frame.
        class_conditional: whether the class is given, too.
    """

    kind: Prompt
    region: Region = "none"
    missing: bool = False
    padding: Padding = "black"
    frames: int = 1
    latent_frames: int | None = None
    class_conditional: bool = False

    def __post_init__(self) -> None:
        if self.frames < 1 or (self.latent_frames is not None and self.latent_frames < 1):
            raise ValueError(
                f"VideoTask: got frames {self.frames}, latent_frames {self.latent_frames}; expected 1 or more of each"
            )

    def prompt(self, *, inpainting_prompt: bool = False) -> int:
        """The prompt the model is told, for ``Cond.task``.

        Args:
            inpainting_prompt: give inpainting its own. The official code, by a mistake that its configurations keep, uses
                outpainting's, and so must models that follow it; new models are free to choose.
        """
        return int(Prompt.OUTPAINTING if self.kind == Prompt.INPAINTING and not inpainting_prompt else self.kind)

    def condition(self, clip: Tensor, cells: TokenCells) -> VideoCondition:
        """The given part of clips, padded, and its tokens.

        Args:
            clip: float ``[B, 3, T, H, W]``; only the given pixels matter (but for the region ``latent``).
            cells: of the tokenizer, for clips of this size.

        Raises:
            TypeError, ValueError: no such clips, of another size than the cells, or with too few frames to give.
        """
        _check_clip(clip, cells)
        length, count = cells.size[0], self.frames * {"first": 1, "ends": 2}.get(self.region, 0)
        if count >= length or (self.latent_frames or 1) > cells.axes[0]:
            raise ValueError(
                f"condition: got {length} frames, {cells.axes[0]} token frames; expected more than the {count} that are "
                f"given, and at least {self.latent_frames or 1} token frames"
            )
        pixels = self._given(cells.size)
        given = pixels.expand(cells.size)
        by_frames = self.region in ("first", "ends", "latent")
        tokens = self._token_frames(pixels, cells) if by_frames else self._given(cells.axes)
        return VideoCondition(
            clip=self._padded(clip, given),
            pixels=given.to(clip.device)[None, None],
            tokens=tokens.expand(cells.axes).clone().to(clip.device),
        )

    def _given(self, size: tuple[int, int, int]) -> Tensor:
        """Bool, broadcastable to a clip or a token grid of this size."""
        length, height, width = size
        if self.region in ("none", "latent"):
            return torch.zeros(1, 1, 1, dtype=torch.bool)
        if self.region in ("first", "ends"):
            return self._ends(length, self.frames)
        rows, columns = torch.arange(height)[:, None], torch.arange(width)
        upright = (rows >= height // 4) & (rows < height // 4 + height // 2)
        across = (columns >= width // 4) & (columns < width // 4 + width // 2)
        if self.region in ("strip", "window"):
            left = torch.tensor(_sweep(width // 2, length))[:, None, None]
            across = (columns >= left) & (columns < left + width // 2)
        if self.region == "quarter":
            inside = (rows < height // 2) & (columns < width // 2)
        elif self.region in ("vertical", "strip"):
            inside = across
        else:
            inside = upright if self.region == "horizontal" else upright & across
        inside = inside.expand(inside.shape[0] if inside.ndim == 3 else 1, height, width)
        return ~inside if self.missing else inside

    def _token_frames(self, pixels: Tensor, cells: TokenCells) -> Tensor:
        """Bool ``[t, 1, 1]``."""
        count, length = self.latent_frames or 1, cells.axes[0]
        if self.latent_frames is None and self.region != "latent":
            return cells.holding(pixels.expand(cells.size)).any(2, keepdim=True).any(1, keepdim=True)
        return self._ends(length, count)

    def _ends(self, length: int, count: int) -> Tensor:
        """Bool ``[length, 1, 1]``, True for ``count`` frames at the start, and at the end for the region ``ends``."""
        index = torch.arange(length)
        last = index >= length - count if self.region == "ends" else False
        return ((index < count) | last)[:, None, None]

    def _padded(self, clip: Tensor, given: Tensor) -> Tensor:
        if self.padding == "clip":
            return clip
        if self.padding == "time":
            return _fade_frames(clip, given.flatten(1).any(1))
        if self.padding == "edge":
            return spread_edges(clip, given[0])
        return torch.where(given.to(clip.device), clip, 0)


def condition_from_mask(clip: Tensor, given: Tensor, cells: TokenCells) -> VideoCondition:
    """A condition from any pixels: a token is a draft if its cell holds at least one of them.

    Clips of which whole frames are given, and no parts of frames, are padded in time as in frame prediction and
    interpolation; else what is missing is black, as in inpainting.

    Args:
        clip: float ``[B, 3, T, H, W]``; only the given pixels matter.
        given: bool, True where given: ``[T, H, W]``, ``[H, W]`` for all frames alike, or ``[T]`` for whole frames.
        cells: of the tokenizer, for clips of this size.

    Raises:
        TypeError: a mask that is not boolean, or clips that are not floating point.
        ValueError: another shape, or nothing or everything given.
    """
    _check_clip(clip, cells)
    if given.dtype != torch.bool:
        raise TypeError(f"mask: got {given.dtype}, expected bool, True where a pixel is given")
    shape = tuple(given.shape)
    if shape not in (cells.size, cells.size[1:], cells.size[:1]):
        raise ValueError(
            f"mask: got shape {shape}, expected {cells.size}, {cells.size[1:]} for all frames alike, or {cells.size[:1]} "
            "for whole frames"
        )
    pixels = (given[:, None, None] if given.ndim == 1 else given).expand(cells.size)
    if not pixels.any() or pixels.all():
        raise ValueError(
            f"mask: {'everything' if pixels.any() else 'nothing'} is given; expected True at some pixels and not at others"
        )
    whole = pixels.flatten(1).all(1)
    padded = (
        _fade_frames(clip, whole)
        if torch.equal(whole, pixels.flatten(1).any(1))
        else torch.where(pixels.to(clip.device), clip, 0)
    )
    return VideoCondition(
        clip=padded, pixels=pixels.to(clip.device)[None, None], tokens=cells.holding(pixels).to(clip.device)
    )


VIDEO_TASKS: Mapping[str, VideoTask] = MappingProxyType(
    {
        "FP": VideoTask(kind=Prompt.FRAME_PREDICTION, region="first", padding="time"),
        "FI": VideoTask(kind=Prompt.FRAME_INTERPOLATION, region="ends", padding="time"),
        "OPC": VideoTask(kind=Prompt.OUTPAINTING, region="central", padding="edge"),
        "OPV": VideoTask(kind=Prompt.OUTPAINTING, region="vertical", padding="edge"),
        "OPH": VideoTask(kind=Prompt.OUTPAINTING, region="horizontal", padding="edge"),
        "OPD": VideoTask(kind=Prompt.OUTPAINTING, region="strip"),
        "IPC": VideoTask(kind=Prompt.INPAINTING, region="central", missing=True),
        "IPD": VideoTask(kind=Prompt.INPAINTING, region="window", missing=True),
        "CG": VideoTask(kind=Prompt.FULL_GENERATION, class_conditional=True),
        "CFP": VideoTask(kind=Prompt.FRAME_PREDICTION, region="first", padding="time", class_conditional=True),
        # Not among the ten of the paper, but in the official code.
        "OPQ": VideoTask(kind=Prompt.OUTPAINTING, region="quarter", padding="edge"),
        "IPQ": VideoTask(kind=Prompt.INPAINTING, region="quarter", missing=True),
        "LFP": VideoTask(kind=Prompt.FULL_GENERATION, region="latent", padding="clip"),
    }
)
"""The ten tasks by the labels of the paper: frame prediction and interpolation, outpainting (central, vertical, horizontal,
dynamic), inpainting (central, dynamic), class-conditional generation and frame prediction; and three more."""


def _check_clip(clip: Tensor, cells: TokenCells) -> None:
    check_video(clip)
    if tuple(clip.shape[2:]) != cells.size:
        raise ValueError(f"condition: got clips of size {tuple(clip.shape[2:])}, expected {cells.size} as the cells")


def _sweep(way: int, steps: int) -> list[int]:
    """Numbers on an even way from 0 to ``way``, rounded half to even as the official code does."""
    return [round(Fraction(way * step, max(1, steps - 1))) for step in range(steps)]


def _fade_frames(clip: Tensor, whole: Tensor) -> Tensor:
    """Missing frames from the nearest given ones: a linear fade between two, a repetition beyond the first and the last.

    Args:
        clip: float ``[B, 3, T, H, W]``.
        whole: bool ``[T]``, at least one True.
    """
    given = whole.nonzero()[:, 0].tolist()
    before, after, weights = [], [], []
    for index in range(len(whole)):
        left = max((frame for frame in given if frame <= index), default=given[0])
        right = min((frame for frame in given if frame >= index), default=given[-1])
        before.append(left)
        after.append(right)
        weights.append((index - left) / (right - left) if right > left else 0.0)
    weight = torch.tensor(weights, dtype=clip.dtype, device=clip.device)[:, None, None]
    faded = clip[:, :, before] * (1 - weight) + clip[:, :, after] * weight
    return torch.where(weight == 0, clip[:, :, before], faded)


def spread_edges(clip: Tensor, inside: Tensor) -> Tensor:
    """Every pixel outside of a rectangle from the nearest one inside.

    Args:
        clip: float ``[B, 3, T, H, W]``.
        inside: bool ``[H, W]``, a rectangle.
    """
    rows, columns = (inside.any(axis).nonzero()[:, 0] for axis in (1, 0))
    nearest = [
        torch.arange(length).clamp(int(side[0]), int(side[-1])).to(clip.device)
        for side, length in zip((rows, columns), inside.shape, strict=True)
    ]
    return clip[..., nearest[0][:, None], nearest[1]]
