"""Where an edit acts: pixels to tokens, soft edges, the crop a model works on, and pasting back.

Pure geometry. Shapes: H W pixels, h w token grid. Boxes are (top, left, height, width),
sizes (height, width), in pixels.
"""

import numpy as np
import torch
from torch import Tensor, nn

Box = tuple[int, int, int, int]


def token_mask(pixel_mask: Tensor, axes: tuple[int, ...], dilation: int = 0) -> Tensor:
    """The pixel-to-token rule: a token is repainted if any pixel of its cell is marked.

    The picture is divided evenly, so that it may have any size: the cell of row i covers pixel rows floor(i H / h) to
    ceil((i + 1) H / h) - 1, columns likewise; a pixel on a border between cells belongs to both.

    Args:
        pixel_mask: bool ``[H, W]``, True = repaint.
        axes: token grid (h, w).
        dilation: cells by which the marked region then grows in all eight directions.

    Returns:
        bool ``[h * w]`` in raster order.

    Raises:
        ValueError: not a bool ``[H, W]``, or a negative dilation.
    """
    _check_mask(pixel_mask)
    check_count("dilation", dilation)
    h, w = axes
    cells = nn.functional.adaptive_max_pool2d(pixel_mask[None, None].float(), (h, w))
    if dilation:
        cells = nn.functional.max_pool2d(cells, 2 * dilation + 1, stride=1, padding=dilation)
    return cells.flatten() > 0


def feather(pixel_mask: Tensor, width: int) -> Tensor:
    """A soft edge outside a mask: 1 - d / (width + 1), never below 0, at distance d (king's moves) from the mask.

    Args:
        pixel_mask: bool ``[H, W]``.
        width: pixels outside the mask that get a part; 0 gives the mask itself.

    Returns:
        float32 ``[H, W]``: exactly 1 inside, exactly 0 farther away than ``width``.

    Raises:
        ValueError: not a bool ``[H, W]``, or a negative width.
    """
    _check_mask(pixel_mask)
    check_count("feather", width)
    return (1 - _distance(pixel_mask) / (width + 1)).clamp(min=0)


def bounding_box(pixel_mask: Tensor) -> Box:
    """Smallest box around the marked pixels of a bool ``[H, W]`` with at least one."""
    rows, columns = pixel_mask.any(1).nonzero().flatten(), pixel_mask.any(0).nonzero().flatten()
    top, left = int(rows[0]), int(columns[0])
    return top, left, int(rows[-1]) - top + 1, int(columns[-1]) - left + 1


def plan_crop(size: tuple[int, int], bbox: Box, target: tuple[int, int]) -> Box:
    """The part of a picture that a model works on.

    The largest window with the model's aspect that fits into the picture, centred on the mask as far as the edges let
    it; if the mask does not fit into that, the whole picture, which is then squeezed to the model's aspect.

    Args:
        size: of the picture.
        bbox: box of the mask.
        target: the model's size, of which only the aspect counts.

    Returns:
        Box of the crop, inside the picture.
    """
    scale = min(size[0] / target[0], size[1] / target[1])
    extent = [min(full, max(1, round(scale * side))) for full, side in zip(size, target, strict=True)]
    if bbox[2] > extent[0] or bbox[3] > extent[1]:
        return 0, 0, *size
    centred = [bbox[axis] + (bbox[axis + 2] - extent[axis]) // 2 for axis in (0, 1)]
    top, left = (min(max(start, 0), size[axis] - extent[axis]) for axis, start in enumerate(centred))
    return top, left, extent[0], extent[1]


def half_token(shown: tuple[int, int], axes: tuple[int, ...]) -> int:
    """Half a token's side in pixels of a picture of size ``shown`` on the grid ``axes``, at least 1."""
    return max(1, round(min(side / cells for side, cells in zip(shown, axes, strict=True)) / 2))


def check_count(name: str, value: int) -> None:
    """Refuse anything but an integer of 0 or more.

    Raises:
        TypeError: not an integer.
        ValueError: negative.
    """
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise TypeError(f"{name}: got {value!r}, expected a whole number of 0 or more")
    if value < 0:
        raise ValueError(f"{name}: got {value}, expected a whole number of 0 or more")


def _check_mask(pixel_mask: Tensor) -> None:
    if pixel_mask.ndim != 2 or pixel_mask.dtype != torch.bool:
        raise ValueError(f"mask: got {pixel_mask.dtype} {tuple(pixel_mask.shape)}, expected bool [H, W]")


def _distance(pixel_mask: Tensor) -> Tensor:
    """King's moves to the nearest marked pixel, float32 ``[H, W]``, more than H + W if there is none.

    Two sweeps over the rows, exact for this distance (Rosenfeld and Pfaltz 1968); unlike repeated dilation the time does
    not grow with the width of the edge, which is more than 100 pixels for large photographs.
    """
    height, width = pixel_mask.shape
    steps = np.where(pixel_mask.cpu().numpy(), 0, 2 * (height + width)).astype(np.int32)
    ramp = np.arange(width, dtype=np.int32)
    for sweep in (steps, steps[::-1]):
        for number, row in enumerate(sweep):
            if number:
                above = sweep[number - 1] + 1
                np.minimum(row, above, out=row)
                np.minimum(row[1:], above[:-1], out=row[1:])
                np.minimum(row[:-1], above[1:], out=row[:-1])
            np.minimum(row, np.minimum.accumulate(row - ramp) + ramp, out=row)
            np.minimum(row, np.minimum.accumulate((row + ramp)[::-1])[::-1] - ramp, out=row)
    return torch.from_numpy(steps).float()
