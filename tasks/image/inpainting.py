"""Repaint a marked region of a picture of any size; everything else stays, bit for bit.

No official code or pixel-to-token rule exists for free-form masks (maskgit issue #12); the choices made here:

1. crop: the largest window of the model's aspect, centred on the mask (``plan_crop``), is resized to the model's size;
2. the hole is first filled with smooth colours made from the kept pixels (``fill_holes``), so that nothing of what
   stands under the mask reaches the kept tokens through the encoder's receptive field;
3. every token with a marked pixel in its cell is masked (``token_mask``), the others are given;
4. decide the masked tokens, decode, resize back, blend over the original along a feathered edge outside the mask.

Shapes: B results, H W pixels, N tokens, K codebooks.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Unpack

import torch
from PIL import Image
from torch import Tensor

from maskgen.tasks.conditions.request import Options
from maskgen.tasks.image.paste import Box, bounding_box, check_count, feather, half_token, plan_crop, token_mask
from maskgen.tasks.media.images import (
    ImageSource,
    MaskSource,
    as_list,
    broadcast,
    fill_holes,
    load_mask,
    to_images,
    to_tensor,
)
from maskgen.tasks.media.originals import Original, load_original
from maskgen.tasks.pipeline import Pipeline


def inpaint(
    pipe: Pipeline,
    image: ImageSource | Sequence[ImageSource],
    mask: MaskSource | Sequence[MaskSource],
    *,
    dilation: int = 0,
    feather: int | None = None,
    **options: Unpack[Options],
) -> list[Image.Image]:
    """Repaint what a mask marks.

    Images, masks, labels and seeds must be equally many or single ones, which repeat: one image with several seeds
    gives variations, several images with as many masks and seeds give one result each. A result depends on its own
    image, mask, label and seed alone.

    Args:
        pipe: an image model.
        image: pictures of any size, see ``maskgen.tasks.media.images.load_image``.
        mask: white or True where to repaint, of the picture's size, see ``maskgen.tasks.media.images.load_mask``.
        dilation: tokens by which the masked region grows; 0 suffices because the hole is emptied before encoding.
        feather: pixels of the picture, outside the mask, over which the result fades into the original; by default half
            a token. 0 changes marked pixels only.
        options: labels, seeds and settings, see ``maskgen.tasks.conditions.request.Options``.

    Returns:
        B pictures of their originals' sizes. Pixels farther than ``feather`` from the mask are the original's.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a picture or mask that cannot be used, numbers that differ, settings out of range, an unknown class,
            or a model of another modality.
    """
    pipe.require("image", "inpainting", regions=True)
    check_count("dilation", dilation)
    pictures, masks = broadcast(images=as_list(image), masks=as_list(mask))
    request = pipe.request(options, images=pictures)
    jobs = [_plan(pipe, one, hole, feather) for one, hole in zip(pictures, masks, strict=True)]
    inputs = torch.cat([job.input for job in jobs])
    tokens, picture = pipe.encode(inputs)[request.sources], inputs[request.sources]
    masked = torch.stack([token_mask(job.hole, pipe.axes, dilation) for job in jobs])[request.sources].to(tokens.device)
    decoded = to_images(pipe.decode(pipe.fill(tokens, masked[..., None].expand_as(tokens), request, picture=picture)))
    return [jobs[source].finish(picture) for source, picture in zip(request.sources, decoded, strict=True)]


@dataclass(frozen=True)
class _Job:
    """One picture made ready: what the model sees, and how its answer goes back."""

    original: Original
    crop: Box
    alpha: Tensor  # float [H, W], of the whole picture
    hole: Tensor  # bool [H', W'], of the crop
    input: Tensor  # float [1, 3, h, w], at the model's size

    def finish(self, decoded: Image.Image) -> Image.Image:
        top, left, height, width = self.crop
        repainted = self.original.rgb.copy()
        repainted.paste(decoded.resize((width, height), Image.Resampling.BICUBIC), (left, top))
        return self.original.paste(repainted, self.alpha)


def _plan(pipe: Pipeline, source: ImageSource, mask: MaskSource, width: int | None) -> _Job:
    original = load_original(source)
    picture = original.rgb
    marked = load_mask(mask, picture.size)
    size, target = (picture.height, picture.width), (pipe.grid_size[0], pipe.grid_size[1])
    if width is None:
        width = half_token(plan_crop(size, bounding_box(marked), target)[2:], pipe.axes)
    alpha = feather(marked, width)
    # The crop holds the feather too, else the result would end in a hard line at the edge of the crop.
    crop = plan_crop(size, bounding_box(alpha > 0), target)
    rows, columns = slice(crop[0], crop[0] + crop[2]), slice(crop[1], crop[1] + crop[3])
    hole = marked[rows, columns]
    emptied = fill_holes(to_tensor([picture])[0], marked)[:, rows, columns]
    small = to_images(emptied[None])[0].resize((target[1], target[0]), Image.Resampling.BICUBIC)
    return _Job(original, crop, alpha, hole, to_tensor([small]))
