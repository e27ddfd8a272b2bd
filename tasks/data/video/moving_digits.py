"""Moving digits: video to train on that nobody has to download, and whose future has a right answer.

The recipe of moving MNIST (Srivastava et al. 2015, arXiv 1502.04681), with the handwritten digits that come with
scikit-learn: a digit drifts at a constant speed and bounces off the borders. Once its speed is known, which takes a few
frames, so is everything else.

Shapes: B batch, D digits of a clip, T frames, S side of a frame, P side of a digit, in pixels.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

import torch
from torch import Tensor

from maskgen.data import Batch, TensorSource
from maskgen.tasks.data.images.digits import Digits
from maskgen.tasks.data.video.folders import VideoData

__all__ = ["DigitClips", "MovingDigits"]

_SPEEDS = (1 / 32, 2 / 32)  # sides of the frame a frame: a digit moves on in every one, and crosses it in less than 32

_DIRECTIONS = ((0, 1), (0, -1), (1, 0), (-1, 0))  # pixels a frame, of digits on a grid


class MovingDigits(VideoData):
    """Clips of handwritten digits that bounce inside a black frame.

    1,437 digits for training and 360 others for testing, as in ``maskgen.tasks.data.images.digits.Digits``. A training
    clip is a function of its index, which chooses its first digit, and of its seed, which chooses all
    else; the clips of ``test`` depend on their index alone.

    Args:
        frames: T.
        size: S.
        digits: D; where digits overlap, the brighter pixel shows.
        digit_size: P.
        grid: if above 0, digits start at multiples of so many pixels and move by one pixel a frame along a row or a column,
            instead of from anywhere by one or two at any angle. With a tokenizer's stride as the grid, equal motion makes
            equal tokens at every place, and small models learn in minutes; the frame less the digit is a multiple of it.
        labels: whether clips of one digit are labelled with it; clips of several never are.
        seed: of everything that is drawn, besides the examples' seeds.

    Raises:
        ValueError: numbers out of range, or a digit that has no room to move.
        ImportError: without scikit-learn.
    """

    def __init__(
        self,
        frames: int = 16,
        size: int = 32,
        digits: int = 1,
        digit_size: int = 16,
        *,
        grid: int = 0,
        labels: bool = True,
        seed: int = 0,
    ) -> None:
        if frames < 1 or digits < 1 or not 8 <= digit_size < size:
            raise ValueError(
                f"MovingDigits: got frames {frames}, digits {digits}, digit_size {digit_size}, size {size}; expected 1 or "
                "more frames and digits, and a digit of at least 8 pixels that is smaller than the frame"
            )
        if grid < 0 or (grid and (size - digit_size) % grid):
            raise ValueError(
                f"MovingDigits: got grid {grid}, size {size}, digit_size {digit_size}; expected 0, or a divisor of "
                "size - digit_size"
            )
        self.size, self.digits, self.digit_size, self.seed = (frames, size, size), digits, digit_size, seed
        self.grid = grid
        found = Digits(digit_size)
        self._names = found.class_names if labels and digits == 1 else ()
        kept = found.train()
        assert isinstance(kept, TensorSource)
        self._train = DigitClips(self, kept, fixed=False)
        self._test = DigitClips(self, found.test(), fixed=True)

    @property
    def class_names(self) -> tuple[str, ...]:
        """English names of the digits; empty without labels."""
        return self._names

    def train(self) -> DigitClips:
        """One clip a training digit, on another path for every seed."""
        return self._train

    def test(self) -> DigitClips:
        """One clip a test digit, always the same."""
        return self._test


class DigitClips:
    """The clips of one half: ``video`` float ``[B, 3, T, S, S]`` in [0, 1], and ``labels`` long ``[B]`` if there are any.

    Args:
        data: what a clip is.
        source: holds ``images``, grey ``[n, 3, P, P]``, and ``labels``.
        fixed: clips do not depend on the seeds.
    """

    def __init__(self, data: MovingDigits, source: TensorSource, *, fixed: bool) -> None:
        self.data, self.fixed = data, fixed
        self._images, self._labels = source.tensors["images"][:, 0].contiguous(), source.tensors["labels"]

    def __len__(self) -> int:
        return len(self._images)

    def batch(self, indices: Sequence[int], seeds: Sequence[int]) -> Batch:
        """See ``maskgen.data.Source``."""
        frames, side, _ = self.data.size
        drawn = [self._draw(index, seed) for index, seed in zip(indices, seeds, strict=True)]
        chosen = torch.tensor([[digit for digit, _ in clip] for clip in drawn])
        motion = torch.tensor([[numbers for _, numbers in clip] for clip in drawn], dtype=torch.float64)
        places = _bounce(motion[..., :2], motion[..., 2:], frames, side - self.data.digit_size)
        video = _paint(self._images[chosen], places, side)
        batch = {"video": video[:, None].expand(-1, 3, -1, -1, -1).contiguous()}
        if self.data.class_names:
            batch["labels"] = self._labels[torch.as_tensor(indices)]
        return batch

    def _draw(self, index: int, seed: int) -> list[tuple[int, tuple[float, float, float, float]]]:
        """Each digit's number and its (row, column, rows a frame, columns a frame) at the start, in pixels."""
        draw = random.Random(f"{self.data.seed} {index} {'test' if self.fixed else seed}")
        side = self.data.size[1]
        room = side - self.data.digit_size
        found: list[tuple[int, tuple[float, float, float, float]]] = []
        for number in range(self.data.digits):
            digit = draw.randrange(len(self)) if number else index
            if grid := self.data.grid:
                start: tuple[float, float] = grid * draw.randint(0, room // grid), grid * draw.randint(0, room // grid)
                found.append((digit, (*start, *draw.choice(_DIRECTIONS))))
                continue
            angle, speed = draw.uniform(0, 2 * math.pi), side * draw.uniform(*_SPEEDS)
            start = draw.uniform(0, room), draw.uniform(0, room)
            found.append((digit, (*start, speed * math.sin(angle), speed * math.cos(angle))))
        return found


def _bounce(start: Tensor, speed: Tensor, frames: int, room: int) -> Tensor:
    """Whole pixels at which digits lie: straight lines, folded at 0 and ``room``.

    Args:
        start: float ``[B, D, 2]``, rows and columns.
        speed: float ``[B, D, 2]``, pixels a frame.
        frames: T.
        room: largest row and column.

    Returns:
        long ``[B, T, D, 2]``.
    """
    way = start[:, None] + speed[:, None] * torch.arange(frames, dtype=start.dtype)[:, None, None]
    turned = way.remainder(2 * room)
    return torch.minimum(turned, 2 * room - turned).round().long()


def _paint(images: Tensor, places: Tensor, side: int) -> Tensor:
    """Frames ``[B, T, S, S]`` with the brighter of all digits at every pixel.

    Args:
        images: float ``[B, D, P, P]``.
        places: long ``[B, T, D, 2]``, upper left corners.
        side: S.
    """
    clips, frames, digits, _ = places.shape
    inside = torch.arange(images.shape[-1])
    pixels = inside[:, None] * side + inside  # of a digit in the upper left corner, [P, P]
    corners = places[..., 0] * side + places[..., 1]
    video = torch.zeros(clips, frames, side * side)
    for number in range(digits):
        spots = (corners[:, :, number, None, None] + pixels).flatten(2)
        digit = images[:, number, None].expand(-1, frames, -1, -1).flatten(2)
        video.scatter_reduce_(2, spots, digit, reduce="amax")
    return video.view(clips, frames, side, side)
