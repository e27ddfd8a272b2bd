"""Inflation: start a video tokenizer from an image tokenizer's weights (Carreira and Zisserman 2017; MAGVIT, section 3.1).

Shapes: O I output and input channels, k kernel lengths.
"""

from collections.abc import Collection, Mapping
from typing import Literal

import torch
from einops import repeat
from torch import Tensor, nn

from maskgen.tokenizers.image.vqgan import VQGAN
from maskgen.tokenizers.video.frames import FrameVQ
from maskgen.tokenizers.video.vq3d import VQ3D

InflationMode = Literal["central", "average"]


def inflate_kernel(kernel: Tensor, length: int, mode: InflationMode = "central", *, backwards: bool = False) -> Tensor:
    """A 2D kernel as a 3D one.

    "central" (official MAGVIT) puts it at index length // 2 in time and zeros elsewhere: frames do not see each other yet.
    "average" puts 1 / length of it everywhere: a clip that stands still gives what the image gave, but at its borders.

    Args:
        kernel: [O, I, kh, kw].
        length: kt.
        mode: "central" or "average".
        backwards: count from the end, as transposed convolutions do, whose kernels the official code stores
            reversed.

    Returns:
        [O, I, kt, kh, kw].

    Raises:
        ValueError: for another shape, length or mode.
    """
    if kernel.ndim != 4:
        raise ValueError(f"kernel: got shape {tuple(kernel.shape)}, expected [O, I, kh, kw]")
    if length < 1:
        raise ValueError(f"length: got {length}, expected 1 or more")
    if mode == "average":
        return repeat(kernel * (1 / length), "o i h w -> o i t h w", t=length)
    if mode != "central":
        raise ValueError(f"mode: got {mode!r}, expected 'central' or 'average'")
    middle = length // 2
    return place_kernel(kernel, length, length - 1 - middle if backwards else middle)


def place_kernel(kernel: Tensor, length: int, index: int) -> Tensor:
    """A 2D kernel [O, I, kh, kw] at one index in time of a 3D one [O, I, length, kh, kw], zeros elsewhere."""
    inflated = kernel.new_zeros(*kernel.shape[:2], length, *kernel.shape[2:])
    inflated[:, :, index] = kernel
    return inflated


def inflate(
    flat: Mapping[str, Tensor],
    deep: Mapping[str, Tensor],
    mode: InflationMode = "central",
    *,
    backwards: Collection[str] = (),
) -> tuple[dict[str, Tensor], list[str]]:
    """Weights of a 3D network from those of a 2D one with the same names.

    Equal shapes are copied (norms, biases, codebooks), kernels of equal widths and sides are inflated, and whatever fits
    neither way stays as it is. A kernel [O, I, 1, kh, kw] counts as 2D.

    Args:
        flat: 2D weights by name.
        deep: 3D weights by name, as they start.
        mode: "central" or "average".
        backwards: names of kernels of transposed convolutions.

    Returns:
        The new 3D weights, all in memory of their own, and the names of those that stayed as they were.

    Raises:
        ValueError: when nothing fits: these are not two forms of one network.
    """
    inflated: dict[str, Tensor] = {}
    kept: list[str] = []
    for name, start in deep.items():
        given = flat.get(name)
        if given is not None and given.shape == start.shape:
            inflated[name] = given.to(start.dtype).clone(memory_format=torch.contiguous_format)
            continue
        if given is not None and given.ndim == 5 and given.shape[2] == 1:
            given = given.squeeze(2)
        fits = given is not None and start.ndim == 5 and given.shape == (*start.shape[:2], *start.shape[3:])
        if given is not None and fits:
            inflated[name] = inflate_kernel(given.to(start.dtype), start.shape[2], mode, backwards=name in backwards)
        else:
            inflated[name] = start.clone()
            kept.append(name)
    if len(kept) == len(deep):
        raise ValueError(
            f"none of the {len(flat)} weights fits one of the {len(deep)}; expected the same names, widths and kernel sides"
        )
    return inflated, kept


def inflate_model(video: VQ3D, images: VQGAN | FrameVQ, mode: InflationMode = "central") -> list[str]:
    """Start a video tokenizer from a trained image tokenizer with the same levels and blocks, in place.

    Under "central" a clip that stands still gives, frame for frame, the image's codes and its reconstruction, provided that
    averages halve time and nearest neighbours double it. Under "average" so it does away from the first and last frames.

    MaskGIT's released weights have shortcuts that read another tensor (``VQGANConfig.shortcut``); where widths change their
    shapes do not fit, and those stay as they were. Better train the image tokenizer with ``shortcut="input"``.

    Args:
        video: the model to start; changed.
        images: where from.
        mode: "central" (official) or "average".

    Returns:
        Names of weights that found no partner and stayed as they were.

    Raises:
        ValueError: when nothing fits.
    """
    deconvs = {name for name, module in video.named_modules() if isinstance(module, nn.ConvTranspose3d)}
    weights, kept = inflate(
        images.state_dict(), video.state_dict(), mode, backwards={f"{name}.weight" for name in deconvs}
    )
    video.load_state_dict(weights)
    return kept
