"""How published numbers were measured, by name: what two reports must share before their numbers may be compared.

Shapes: B batch, H W pixels.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from einops import rearrange
from PIL import Image
from torch import Tensor

from maskgen.tasks.media.video.frames import resize_tf1

Resize = Literal["tf1-bilinear", "pil-bicubic"]


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """One way to measure generated images, in every detail that moves the numbers.

    The features of precision and recall are those of the extractor, as in ADM's evaluator; the paper's own, and
    torch-fidelity's unless it is told otherwise, are of VGG-16 and give other numbers.

    Attributes:
        name: what it is called here.
        source: whose it is.
        resize: how images reach the extractor's size: ``tf1-bilinear`` without half-pixel offset and low-pass filter, or
            ``pil-bicubic`` with one, on float channels, clipped to the 8-bit range afterwards and not rounded.
        quantisation: what is done to images before that.
        statistics: what the Frechet distance is taken of.
        count: samples that published numbers are made of.
        splits: parts of the Inception score.
        split_size: samples of a part instead.
        shuffle_seed: order of the samples for the Inception score; None leaves them in theirs.
        kid_subsets: how many.
        kid_size: samples of one.
        kid_seed: of their choice.
        neighbours: k of precision and recall; density and coverage take 5.
        most: samples of each side for precision, recall, density and coverage; of more, evenly spaced ones.
    """

    name: str
    source: str
    resize: Resize
    quantisation: str = "8 bits a value, rounded to nearest"
    statistics: str = "means, and covariances over M - 1, in float64"
    count: int = 50_000
    splits: int = 10
    split_size: int | None = None
    shuffle_seed: int | None = 2020
    kid_subsets: int = 100
    kid_size: int = 1000
    kid_seed: int = 2020
    neighbours: int = 3
    most: int = 50_000


_ALL = (
    Protocol(
        name="adm",
        source="Dhariwal and Nichol 2021, arXiv 2105.05233, and their evaluator.py",
        resize="tf1-bilinear",
        split_size=5000,
        shuffle_seed=None,
    ),
    Protocol(
        name="clean-fid", source="Parmar et al. 2022, arXiv 2104.11222, mode clean", resize="pil-bicubic", most=10_000
    ),
    Protocol(name="torch-fidelity", source="torch-fidelity 0.4 with its defaults", resize="tf1-bilinear"),
)

PROTOCOLS: dict[str, Protocol] = {protocol.name: protocol for protocol in _ALL}
"""The known ones by name."""


def find_protocol(name: str) -> Protocol:
    """A protocol by its name.

    Raises:
        ValueError: there is none.
    """
    if name not in PROTOCOLS:
        raise ValueError(f"protocol: got {name!r}, expected one of {', '.join(PROTOCOLS)}")
    return PROTOCOLS[name]


def resize_images(images: Tensor, size: tuple[int, int] | None, rule: Resize) -> Tensor:
    """8-bit images as an extractor takes them.

    Args:
        images: uint8 ``[B, 3, H, W]``.
        size: (H, W) to give; None leaves them as they are.
        rule: see ``Protocol``.

    Returns:
        float32 ``[B, 3, *size]`` in [0, 1].
    """
    values = images.float()
    if size is None or tuple(images.shape[-2:]) == tuple(size):
        return values / 255
    if rule == "tf1-bilinear":
        return resize_tf1(values, size) / 255
    height, width = size
    planes = rearrange(values, "b c h w -> (b c) h w").cpu().numpy()
    resized = [np.asarray(Image.fromarray(plane).resize((width, height), Image.Resampling.BICUBIC)) for plane in planes]
    whole = np.stack(resized).clip(0, 255)  # bicubic overshoots, and clean-fid 0.1.35 clips
    return rearrange(torch.from_numpy(whole), "(b c) h w -> b c h w", b=len(images)).to(images.device) / 255
