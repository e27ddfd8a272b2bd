"""Weights of the official JAX tokenizers, MaskGIT's of images and MAGVIT's of clips: flax names and layouts to ours.

Names are "/"-joined ("encoder/ResBlock_0/Conv_0/kernel"), with or without a leading "params/". Kernels are channels last
there ([kt, kh, kw, in, out], dense [in, out]), channels first here; transposed ones run backwards there.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from einops import rearrange
from torch import Tensor, nn

from maskgen.checkpoint import check_state

_LEAVES: Final = {"kernel": {"weight": "kernel", "bias": "bias"}, "norm": {"weight": "scale", "bias": "bias"}}

_LAYOUTS: Final[dict[type[nn.Module], tuple[str, str]]] = {
    nn.Linear: ("i o", "o i"),
    nn.Conv2d: ("h w i o", "o i h w"),
    nn.Conv3d: ("t h w i o", "o i t h w"),
    nn.ConvTranspose3d: ("t h w i o", "i o t h w"),
}


@dataclass(frozen=True, kw_only=True)
class FlaxSizes:
    """What names and shapes of official weights show of a tokenizer.

    Attributes:
        channels: width of the first level.
        multipliers: width of each level as a multiple of ``channels``.
        encoder_blocks: residual blocks per level of the encoder, and in its middle.
        decoder_blocks: the same of the decoder.
        codebook_size: number of codes.
        dim: width of a code.
        strided: whether convolutions downsample.
        deconv: whether transposed convolutions upsample.
        norm: "GroupNorm" or "LayerNorm"; None where there is none.
        flat: whether kernels have no time axis.
    """

    channels: int
    multipliers: tuple[int, ...]
    encoder_blocks: int
    decoder_blocks: int
    codebook_size: int
    dim: int
    strided: bool
    deconv: bool
    norm: str | None
    flat: bool


def measure_flax(params: Mapping[str, Tensor], family: str) -> FlaxSizes:
    """Sizes of a tokenizer, read from the names and shapes of its official weights.

    Args:
        params: official name to array.
        family: named in the error.

    Raises:
        ValueError: when arrays that fix a size are missing.
    """
    shapes = bare_shapes(params)
    deconv = count(shapes, r"decoder/ConvTranspose_(\d+)/")
    # Between its first and its last convolution the decoder has one for each step.
    levels = max(0, (deconv + 1) if deconv else count(shapes, r"decoder/Conv_(\d+)/") - 1)
    blocks = [count(shapes, rf"{part}/ResBlock_(\d+)/") for part in ("encoder", "decoder")]
    # Every level and the middle hold the same number of blocks.
    per_level = [total // (levels + 1) if levels else 0 for total in blocks]
    needed = ["encoder/Conv_0/kernel", "quantizer/codebook"]
    needed += [f"encoder/ResBlock_{level * per_level[0]}/Conv_0/kernel" for level in range(levels)]
    missing = [name for name in needed if name not in shapes]
    if missing or min(per_level) < 1 or any(total % (levels + 1) for total in blocks):
        raise ValueError(
            f"these are no {family} tokenizer weights: {levels} levels, {blocks[0]} encoder and {blocks[1]} decoder blocks "
            f"found, missing {missing}; expected names like 'encoder/ResBlock_0/Conv_0/kernel'"
        )
    first, codebook, *widths = (shapes[name] for name in needed)
    return FlaxSizes(
        channels=first[-1],
        multipliers=tuple(width[-1] // first[-1] for width in widths),
        encoder_blocks=per_level[0],
        decoder_blocks=per_level[1],
        codebook_size=codebook[0],
        dim=codebook[1],
        strided=count(shapes, r"encoder/Conv_(\d+)/") > 2,
        deconv=deconv > 0,
        norm=norm_of(shapes),
        flat=len(first) == 4,
    )


def network_modules(
    steps: int, blocks: tuple[int, int], *, norm: str = "GroupNorm", strided: bool = False, deconv: bool = False
) -> dict[str, str]:
    """Our module name to the official one, for every module of a tokenizer that has weights.

    Args:
        steps: steps between levels, one fewer than levels.
        blocks: residual blocks per level of encoder and decoder.
        norm: see ``FlaxSizes``, as are the others.
        strided: whether convolutions downsample.
        deconv: whether transposed convolutions upsample.
    """
    modules: dict[str, str] = {"quantizer": "quantizer"}
    for part, per_level in zip(("encoder", "decoder"), blocks, strict=True):
        resampler, transposed = ("downs", False) if part == "encoder" else ("ups", deconv)
        numbered = part == "decoder" or strided
        for index in range(steps if numbered else 0):
            official = f"ConvTranspose_{index}" if transposed else f"Conv_{index + 1}"
            modules[f"{part}.{resampler}.{index}.conv"] = f"{part}/{official}"
        last = 1 if transposed or not numbered else steps + 1
        modules |= {f"{part}.conv_in": f"{part}/Conv_0", f"{part}.conv_out": f"{part}/Conv_{last}"}
        modules[f"{part}.norm_out"] = f"{part}/{norm}_0"
        for index in range((steps + 2) * per_level):
            ours, official = f"{part}.blocks.{index}", f"{part}/ResBlock_{index}"
            for number in (1, 2):
                modules[f"{ours}.norm{number}"] = f"{official}/{norm}_{number - 1}"
                modules[f"{ours}.conv{number}"] = f"{official}/Conv_{number - 1}"
            modules[f"{ours}.shortcut"] = f"{official}/Conv_2"
    return modules


def convert_flax(
    params: Mapping[str, Tensor], model: nn.Module, modules: Mapping[str, str], where: str
) -> dict[str, Tensor]:
    """Official weights as the state dict of a model.

    Args:
        params: official name to array.
        model: the model to fill; may be on the meta device.
        modules: our module name to the official one, see ``network_modules``.
        where: named in the error.

    Returns:
        State dict, complete and of the right shapes; views of the given arrays where they can be, so not contiguous.

    Raises:
        ValueError: naming every array that is missing, unexpected or of another shape, by official names.
    """
    arrays = {_bare(name): array for name, array in params.items()}
    flat = any(name.endswith("kernel") and array.ndim == 4 for name, array in arrays.items())
    official: dict[str, str] = {}
    expected: dict[str, tuple[int, ...]] = {}
    for key, empty in model.state_dict().items():
        module, _, leaf = key.rpartition(".")
        owner = model.get_submodule(module)
        names = _LEAVES["norm" if isinstance(owner, nn.GroupNorm | nn.LayerNorm) else "kernel"]
        official[key] = f"{modules[module]}/{names.get(leaf, leaf)}"
        expected[official[key]] = tuple((_to_flax(empty, owner, flat) if leaf == "weight" else empty).shape)
    check_state(arrays, expected, where)
    return {
        key: _to_torch(arrays[name], model.get_submodule(key.rpartition(".")[0]))
        if key.endswith(".weight")
        else arrays[name]
        for key, name in official.items()
    }


def _layout(owner: nn.Module) -> tuple[str, str]:
    """Axes of a kernel in flax and in torch."""
    return next(orders for kind, orders in _LAYOUTS.items() if isinstance(owner, kind))


def _to_torch(kernel: Tensor, owner: nn.Module) -> Tensor:
    """An official kernel in the layout that ``owner`` holds; norms have one axis and stay."""
    if kernel.ndim == 1:
        return kernel
    official, ours = _layout(owner)
    kernel = rearrange(kernel if kernel.ndim == len(official.split()) else kernel[None], f"{official} -> {ours}")
    return kernel.flip(2, 3, 4) if isinstance(owner, nn.ConvTranspose3d) else kernel


def _to_flax(kernel: Tensor, owner: nn.Module, flat: bool) -> Tensor:
    """Shape of the inverse of ``_to_torch``; a kernel of one frame has no time axis where the weights are 2D."""
    if kernel.ndim == 1:
        return kernel
    official, ours = _layout(owner)
    kernel = rearrange(kernel, f"{ours} -> {official}")
    return kernel[0] if flat and kernel.ndim == 5 and len(kernel) == 1 else kernel


def bare_shapes(params: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Official name, without a leading "params/", to shape."""
    return {_bare(name): tuple(array.shape) for name, array in params.items()}


def norm_of(shapes: Mapping[str, tuple[int, ...]]) -> str | None:
    """Which normalisation the names tell of, "GroupNorm" or "LayerNorm", if any."""
    return next((norm for norm in ("LayerNorm", "GroupNorm") if any(f"{norm}_" in name for name in shapes)), None)


def count(shapes: Mapping[str, tuple[int, ...]], pattern: str) -> int:
    """One more than the highest number that the pattern finds; 0 when it finds none."""
    found = (re.match(pattern, name) for name in shapes)
    return max((int(match[1]) for match in found if match), default=-1) + 1


def _bare(name: str) -> str:
    return name.removeprefix("params/")
