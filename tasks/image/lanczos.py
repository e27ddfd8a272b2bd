"""Pictures and masks as the published pipelines of aMUSEd and Meissonic (diffusers' image processor) bring them to a grid.

Ours keep every marked pixel (``maskgen.tasks.image.paste.token_mask``); theirs reduce the mask like a picture, so that a
thin line may vanish. What they decode becomes 8 bits as with ``maskgen.tasks.media.images.to_images``.

Shapes: H W pixels, h w token grid, N = h x w tokens.
"""

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from maskgen.tasks.media.images import to_tensor


def lanczos_mask(mask: Image.Image | Tensor, axes: tuple[int, int]) -> Tensor:
    """Which tokens the published inpainting repaints.

    Args:
        mask: a picture of any size and mode, white where to repaint: it is brought to the grid by Lanczos (mode ``1`` by its
            nearest pixels), then to grey; half grey and lighter counts. Or float ``[H, W]`` in [0, 1]: nearest pixels, 0.5
            and more counts.
        axes: (h, w).

    Returns:
        bool ``[N]`` in raster order.
    """
    if isinstance(mask, Tensor):
        return F.interpolate(mask[None, None].float(), size=axes).flatten() >= 0.5
    small = mask.resize((axes[1], axes[0]), Image.Resampling.LANCZOS).convert("L")
    return torch.from_numpy(np.array(small, dtype=np.float32) / 255).flatten() >= 0.5


def lanczos_picture(picture: Image.Image, stride: tuple[int, int]) -> Tensor:
    """Pixels ``[1, 3, H, W]`` in [0, 1], reduced by Lanczos to whole tokens, and left alone where they are.

    Args:
        picture: RGB; others the original refuses, so convert them.
        stride: pixels a token, (down, across).

    Raises:
        ValueError: less than a token in one direction.
    """
    size = (picture.width // stride[1] * stride[1], picture.height // stride[0] * stride[0])
    if 0 in size:
        raise ValueError(
            f"image: got {picture.width} x {picture.height} pixels, expected at least {stride[1]} x {stride[0]}, a token"
        )
    return to_tensor([picture.resize(size, Image.Resampling.LANCZOS)])
