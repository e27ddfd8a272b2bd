"""Widen a picture on any side, as far as a panorama, by sliding the model's window over a larger token canvas.

The paper shows such pictures (arXiv 2202.04200, figure 6) but no code was released; the algorithm here:

1. scale the picture so that the widened one just covers the model's grid (but to no less than half the scale at which
   the picture alone would), and encode it, padded to whole tokens;
2. lay the tokens on a canvas that holds the new area too, there masked;
3. among the windows of the model's size on a lattice of half windows take the one with masked tokens that sees most,
   and decide its masked tokens; repeat until nothing is masked;
4. decode the canvas as a whole (the tokenizer must be convolutional, or otherwise take any grid), resize, and put the
   original where it was.

Shapes: B results, H W pixels, h w canvas grid in tokens, N = h w, K codebooks.
"""

from collections.abc import Sequence
from typing import Unpack

import torch
from einops import rearrange
from PIL import Image
from torch import Tensor, nn

from maskgen.tasks.conditions.request import Options, Request
from maskgen.tasks.image.paste import check_count, feather, half_token
from maskgen.tasks.media.images import ImageSource, to_images, to_tensor
from maskgen.tasks.media.originals import load_original
from maskgen.tasks.pipeline import Pipeline

_MOST_WINDOWS, _MOST_PIXELS = 64, 1 << 26
"""Largest canvas, in model grids, and largest picture: beyond that something was mistyped."""


def outpaint(
    pipe: Pipeline,
    image: ImageSource,
    *,
    left: int = 0,
    right: int = 0,
    top: int = 0,
    bottom: int = 0,
    **options: Unpack[Options],
) -> list[Image.Image]:
    """Add new picture beside the old one.

    Within half a token of the original the new area fades into the original's edge colours, which hides the seam.

    Args:
        pipe: an image model.
        image: a picture of any size and aspect, see ``maskgen.tasks.media.images.load_image``.
        left: pixels to add, in the picture's own scale.
        right: likewise.
        top: likewise.
        bottom: likewise.
        options: labels, seeds and settings of each window, see ``maskgen.tasks.conditions.request.Options``.

    Returns:
        B pictures of height H + top + bottom and width W + left + right; the original's pixels are unchanged.

    Raises:
        FileNotFoundError: no such file.
        ValueError: nothing to add, negative or excessive amounts, numbers of labels and seeds that differ, settings out
            of range, an unknown class, or a model of another modality.
        TypeError: amounts that are not integers.
    """
    pipe.require("image", "outpainting", regions=True)
    request = pipe.request(options)
    pads = ((top, bottom), (left, right))
    for name, pad in (("left", left), ("right", right), ("top", top), ("bottom", bottom)):
        check_count(name, pad)
    if not any(map(any, pads)):
        raise ValueError("outpaint: nothing to add: left, right, top and bottom are all 0; give pixels for one of them")
    original = load_original(image)
    picture = original.rgb
    spans, shown = _laid_out(pipe, picture, pads)
    tokens, masked = _canvas(pipe, picture, spans)
    tokens = extend_tokens(pipe, tokens.expand(len(request.seeds), *tokens.shape[1:]), masked, request)
    # One at a time: a canvas can be 64 pictures large.
    decoded = [
        to_images(pipe.decode(item, (spans[0].cells, spans[1].cells)))[0]
        for item in rearrange(tokens, "B h w K -> B 1 (h w) K")
    ]
    (y, height), (x, width) = (span.result for span in spans)
    painted = [item.resize(shown, Image.Resampling.BICUBIC, (x, y, x + width, y + height)) for item in decoded]
    fade = half_token(original.size, (spans[0].inner, spans[1].inner))
    given = torch.ones(original.size, dtype=torch.bool)
    weight = 1 - feather(nn.functional.pad(given, (left, right, top, bottom)), fade)
    base = original.padded(top, bottom, left, right)
    return [base.paste(item, weight) for item in painted]


def extend_tokens(pipe: Pipeline, tokens: Tensor, mask: Tensor, request: Request, *, overlap: float = 0.5) -> Tensor:
    """Decide the masked tokens of a canvas at least as large as the model's grid, window by window.

    Args:
        pipe: the model.
        tokens: long ``[B, h, w, K]``; what stands at masked positions is ignored.
        mask: bool ``[h, w]``, the same for all items, True = to be decided.
        request: of B rows; window number n is sampled as ``request.window(n)``.
        overlap: part of a window that the next one of the lattice sees again, in [0, 1).

    Returns:
        long ``[B, h, w, K]``.

    Raises:
        ValueError: an overlap out of range or a canvas smaller than the grid.
    """
    if not 0 <= overlap < 1:
        raise ValueError(f"overlap: got {overlap}, expected 0 or more and below 1")
    grid = (pipe.axes[0], pipe.axes[1])
    if mask.shape != tokens.shape[1:3] or any(size < cells for size, cells in zip(mask.shape, grid, strict=True)):
        raise ValueError(
            f"mask: got {tuple(mask.shape)} for tokens {tuple(tokens.shape)}, expected their [h, w], at least {grid}"
        )
    tokens, mask = tokens.clone(), mask.clone()
    lattice = [_starts(size, cells, overlap) for size, cells in zip(mask.shape, grid, strict=True)]
    windows = [(slice(y, y + grid[0]), slice(x, x + grid[1])) for y in lattice[0] for x in lattice[1]]
    number = 0
    while mask.any():
        counts = [int(mask[window].sum()) for window in windows]
        rows, columns = windows[min((count, index) for index, count in enumerate(counts) if count)[1]]
        part = rearrange(tokens[:, rows, columns], "B h w K -> B (h w) K")
        masked = rearrange(mask[rows, columns], "h w -> 1 (h w) 1").expand_as(part)
        filled = pipe.fill(part, masked, request.window(number)).to(tokens.device)
        tokens[:, rows, columns] = rearrange(filled, "B (h w) K -> B h w K", h=grid[0])
        mask[rows, columns] = False
        number += 1
    return tokens


class _Span:
    """One axis of the canvas: the new area before, the picture from a whole token on, the new area behind.

    Args:
        pixels: of the picture.
        pads: pixels to add before and behind, in the picture's scale.
        scaled: pixels of the picture in the model's scale.
        step: pixels a token, in the model's scale.
        least: tokens the canvas must have, those of the model's grid.
    """

    def __init__(self, pixels: int, pads: tuple[int, int], scaled: int, step: int, least: int) -> None:
        before, behind = (pad * scaled / pixels for pad in pads)
        self.first = -int(-before // step)  # tokens before the picture
        self.inner = -(-scaled // step)  # tokens the picture touches
        self.cells = max(self.first + self.inner, -int(-(self.first * step + scaled + behind) // step), least)
        # A last token that the picture only touches is new if there is something new behind it, else the picture's.
        known = scaled // step if pads[1] else self.inner
        self.known = slice(self.first, self.first + known)
        start = self.first * step - before
        self.result = (start, min(before + scaled + behind, self.cells * step - start))
        self.scaled, self.slack = scaled, self.inner * step - scaled


def _laid_out(
    pipe: Pipeline, picture: Image.Image, pads: tuple[tuple[int, int], tuple[int, int]]
) -> tuple[list[_Span], tuple[int, int]]:
    """Rows and columns of the canvas, and width and height of the result; what is too large is refused."""
    spans = [
        _Span(pixels, pad, scaled, step, cells)
        for pixels, pad, scaled, step, cells in zip(
            (picture.height, picture.width),
            pads,
            _scaled(picture, pads, pipe.grid_size, pipe.tokenizer.stride),
            pipe.tokenizer.stride,
            pipe.axes,
            strict=True,
        )
    ]
    cells = spans[0].cells * spans[1].cells
    width, height = picture.width + sum(pads[1]), picture.height + sum(pads[0])
    if cells > _MOST_WINDOWS * pipe.axes[0] * pipe.axes[1] or width * height > _MOST_PIXELS:
        raise ValueError(
            f"outpaint: got {picture.width} x {picture.height} pixels to widen to {width} x {height}; expected at "
            f"most {_MOST_PIXELS} pixels and {_MOST_WINDOWS} windows of the model; add less"
        )
    return spans, (width, height)


def _scaled(
    picture: Image.Image, pads: tuple[tuple[int, int], tuple[int, int]], target: Sequence[int], stride: Sequence[int]
) -> tuple[int, int]:
    """Size of the picture in the model's scale.

    The widened picture as a whole should look to the model like the pictures it knows, so it is that which covers the
    grid; where much is added on both axes, halving is the limit, for the new part would come back coarser than the old.
    """
    sides = (picture.height, picture.width)
    alone = max(goal / side for goal, side in zip(target, sides, strict=True))
    # New area before the picture is rounded up to whole tokens: leave room for that one.
    room = [
        goal - step if pad[0] and goal > step else goal for goal, step, pad in zip(target, stride, pads, strict=True)
    ]
    widened = max(goal / (side + sum(pad)) for goal, side, pad in zip(room, sides, pads, strict=True))
    scale = max(widened, alone / 2)
    return max(1, round(scale * sides[0])), max(1, round(scale * sides[1]))


def _canvas(pipe: Pipeline, picture: Image.Image, spans: Sequence[_Span]) -> tuple[Tensor, Tensor]:
    """Tokens ``[1, h, w, K]`` with the picture in its place, and what is masked, bool ``[h, w]``."""
    rows, columns = spans
    resized = to_tensor([picture.resize((columns.scaled, rows.scaled), Image.Resampling.BICUBIC)])
    resized = nn.functional.pad(resized, (0, columns.slack, 0, rows.slack), mode="replicate")
    encoded = pipe.encode(resized)
    encoded = rearrange(encoded, "1 (h w) K -> 1 h w K", h=rows.inner)
    tokens = encoded.new_zeros(1, rows.cells, columns.cells, encoded.shape[-1])
    inner = [slice(span.first, span.first + span.inner) for span in spans]
    tokens[:, inner[0], inner[1]] = encoded
    masked = torch.ones(rows.cells, columns.cells, dtype=torch.bool, device=tokens.device)
    masked[rows.known, columns.known] = False
    return tokens, masked


def _starts(size: int, cells: int, overlap: float) -> list[int]:
    """First tokens of the windows along one axis; the last window ends with the canvas."""
    step = max(1, round(cells * (1 - overlap)))
    return [*range(0, size - cells, step), size - cells]
