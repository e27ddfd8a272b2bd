"""Put another class into a box of a picture: MaskGIT's class-conditional editing, the one official edit mode.

Where the official notebook fixes a size, the same numbers come out here at 256 and 512 pixels with tokens of 16.

Shapes: B results, H W pixels, h w token grid.
"""

import dataclasses
from typing import Unpack

import numpy as np
import torch
from PIL import Image, ImageFilter
from torch import Tensor

from maskgen.sampling.settings import Sampling
from maskgen.tasks.conditions.request import Options
from maskgen.tasks.image.paste import Box
from maskgen.tasks.media.images import ImageSource, to_images, to_tensor
from maskgen.tasks.media.originals import load_original
from maskgen.tasks.pipeline import Pipeline

_STEPS = 12  # official editing


def swap_class(
    pipe: Pipeline, image: ImageSource, *, box: Box, start_step: int = 2, **options: Unpack[Options]
) -> list[Image.Image]:
    """Repaint a box as another class.

    1. Resize the picture to the model's size (bicubic, aspect ignored) and encode all of it;
    2. mask the tokens of ``swap_token_mask``, decide them in steps ``start_step`` .. ``steps`` - 1, decode;
    3. resize back and blend over the original with ``swap_alpha``.

    Unlike the official code, the decoded picture is clamped to [0, 1] before it is blended.

    Args:
        pipe: an image model.
        image: a picture of any size, see ``maskgen.tasks.media.images.load_image``.
        box: (top, left, height, width) in pixels of ``image``.
        start_step: first step of the schedule that is run, official 2: the first one already keeps many tokens.
        options: label to put there, seeds and settings, see ``maskgen.tasks.conditions.request.Options``; 12 steps
            (official) if neither ``steps`` nor ``sampling`` names any.

    Returns:
        B pictures of the original's size. Pixels where ``swap_alpha`` is 0 are the original's, bit for bit.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a box that is empty or leaves the picture, numbers of labels and seeds that differ, settings out of
            range, an unknown class, or a model of another modality.
        TypeError: a box that is not four integers.
    """
    pipe.require("image", "class swapping", regions=True)
    chosen = swap_sampling(pipe, options.get("sampling"), options.get("steps"), options.get("guidance"))
    request = dataclasses.replace(pipe.request(options), sampling=chosen)
    original = load_original(image)
    picture = original.rgb
    size, target = (picture.height, picture.width), (pipe.grid_size[0], pipe.grid_size[1])
    scaled = _scale(_check_box(box, size), size, target)
    shown = to_tensor([picture.resize((target[1], target[0]), Image.Resampling.BICUBIC)])
    encoded = pipe.encode(shown)
    masked = swap_token_mask(scaled, target, (pipe.axes[0], pipe.axes[1]))
    rows = encoded.expand(len(request.seeds), -1, -1)
    mask = masked.flatten()[None, :, None].to(rows.device).expand_as(rows)
    tokens = pipe.fill(rows, mask, request, start_step=start_step, picture=shown)
    alpha = swap_alpha(masked, size)
    decoded = [item.resize(picture.size, Image.Resampling.BICUBIC) for item in to_images(pipe.decode(tokens))]
    return [original.paste(item, alpha) for item in decoded]


def swap_sampling(
    pipe: Pipeline, sampling: Sampling | None, steps: int | None = None, guidance: float | None = None
) -> Sampling:
    """``Pipeline.sampling`` with the official number of steps where none is named.

    Args:
        pipe: an image model.
        sampling: settings that lie over the model's own.
        steps: decoding steps, instead of the setting's.
        guidance: classifier-free guidance scale, instead of the setting's.

    Raises:
        ValueError: see ``Pipeline.sampling``.
    """
    named = sampling is not None and sampling.names("steps")
    return pipe.sampling(sampling, _STEPS if steps is None and not named else steps, guidance)


def swap_token_mask(box: Box, size: tuple[int, int], axes: tuple[int, int]) -> Tensor:
    """The official box rule: rows max(0, t // s - 1) to min(h, t // s + height // s + 1) - 1, s pixels a token.

    It grows the box by one token at the top and left. At the bottom and right the + 1 only makes up for flooring: a box
    of 31 rows from row 15 with s = 16 ends inside a visible token (an official quirk that ``swap_alpha`` hides).

    Args:
        box: (top, left, height, width) in pixels of the model's picture; may leave it.
        size: the model's (height, width), multiples of ``axes``.
        axes: token grid (h, w).

    Returns:
        bool ``[h, w]``, True = masked.
    """
    mask = torch.zeros(axes, dtype=torch.bool)
    spans = []
    for start, extent, side, cells in zip(box[:2], box[2:], size, axes, strict=True):
        step = side // cells
        spans.append(slice(max(0, start // step - 1), min(cells, extent // step + start // step + 1)))
    mask[spans[0], spans[1]] = True
    return mask


def swap_alpha(mask: Tensor, size: tuple[int, int]) -> Tensor:
    """How much of the repainted picture shows: the token mask, enlarged and blurred (both by PIL, as officially).

    The official radius is size / 16 - 1 (15 at 256, 31 at 512), a sixteenth of the picture whatever the token's side.
    The same fraction is used at any size, for each axis; below 32 pixels there is hardly any blur left.

    Args:
        mask: bool ``[h, w]``, True = masked.
        size: (height, width) of the picture to blend.

    Returns:
        float32 ``[H, W]`` in [0, 1].
    """
    cells = Image.fromarray(mask.numpy().astype(np.uint8) * 255)
    height, width = size
    grown = cells.resize((width, height), Image.Resampling.BICUBIC)
    blurred = grown.filter(ImageFilter.GaussianBlur((max(0.0, width / 16 - 1), max(0.0, height / 16 - 1))))
    return torch.from_numpy(np.array(blurred)).float() / 255


def _check_box(box: Box, size: tuple[int, int]) -> Box:
    if len(box) != 4 or any(isinstance(side, bool) or not isinstance(side, int | np.integer) for side in box):
        raise TypeError(f"box: got {box!r}, expected four whole numbers (top, left, height, width) in pixels")
    top, left, height, width = (int(side) for side in box)
    inside = 0 <= top <= top + height <= size[0] and 0 <= left <= left + width <= size[1]
    if not inside or height < 1 or width < 1:
        raise ValueError(
            f"box: got top {top}, left {left}, height {height}, width {width}; expected at least one pixel, inside the "
            f"image of height {size[0]} and width {size[1]}"
        )
    return top, left, height, width


def _scale(box: Box, size: tuple[int, int], target: tuple[int, int]) -> Box:
    """The box in the model's pixels, outwards to whole ones."""
    ends = []
    for start, extent, side, wanted in zip(box[:2], box[2:], size, target, strict=True):
        first = start * wanted // side
        ends.append((first, -(-(start + extent) * wanted // side) - first))
    return ends[0][0], ends[1][0], ends[0][1], ends[1][1]
