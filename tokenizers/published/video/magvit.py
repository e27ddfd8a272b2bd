"""Key map of the official MAGVIT tokenizers and discriminators: flax names and layouts to ours.

Names are "/"-joined ("encoder/ResBlock_0/Conv_0/kernel"), with or without a leading "params/". Kernels are channels last
there ([kt, kh, kw, in, out], dense [in, out]), channels first here; transposed ones run backwards there. Weights were
never released: the sizes are the official ones, and whoever trained with the official code can convert.
"""

import math
import re
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from maskgen.checkpoint import check_state
from maskgen.tokenizers.layers.conv2d import Activation
from maskgen.tokenizers.layers.conv3d import Norm, Padding
from maskgen.tokenizers.quantizers.vector import QuantizerConfig
from maskgen.tokenizers.training.discriminators.video import VideoDiscriminatorConfig, build_video_discriminator
from maskgen.tokenizers.video.frames import FrameVQ
from maskgen.tokenizers.video.vq3d import VQ3D, VQ3DConfig

__all__ = [
    "DISCRIMINATORS",
    "FRAME_TOKENIZERS",
    "PUBLISHED",
    "config_from",
    "convert",
    "discriminator_config",
    "discriminator_state_dict",
    "tokenizer_state_dict",
]


# 16 frames of 128 x 128 (UCF-101) or 64 x 64 pixels (BAIR) on 4 x 16 x 16 tokens; 40.6, 157.8, 36.6 and 141.9 M parameters.
PUBLISHED: dict[str, VQ3DConfig] = {
    "magvit-ucf101-b": VQ3DConfig(),
    "magvit-ucf101-l": VQ3DConfig(channels=128),
    "magvit-bair-b": VQ3DConfig(multipliers=(1, 2, 4), temporal_downsample=(True, True)),
    "magvit-bair-l": VQ3DConfig(channels=128, multipliers=(1, 2, 4), temporal_downsample=(True, True)),
}


# The 2D tokenizers on frames (``FrameVQ``); 13.8 and 53.1 M parameters.
FRAME_TOKENIZERS: dict[str, VQ3DConfig] = {
    "magvit-ucf101-frames-b": VQ3DConfig(temporal_downsample=(False, False, False)),
    "magvit-ucf101-frames-l": VQ3DConfig(channels=128, temporal_downsample=(False, False, False)),
}


# What each of them was trained against.
DISCRIMINATORS: dict[str, VideoDiscriminatorConfig] = {
    "magvit-ucf101-b": VideoDiscriminatorConfig(),
    "magvit-ucf101-l": VideoDiscriminatorConfig(channels=128),
    "magvit-bair-b": VideoDiscriminatorConfig(size=(16, 64, 64), multipliers=(2, 4, 4, 4)),
    "magvit-bair-l": VideoDiscriminatorConfig(channels=128, size=(16, 64, 64), multipliers=(2, 4, 4, 4)),
    "magvit-ucf101-frames-b": VideoDiscriminatorConfig(kind="frame"),
    "magvit-ucf101-frames-l": VideoDiscriminatorConfig(kind="frame", channels=128),
}

_NAMES = {"kernel": {"weight": "kernel", "bias": "bias"}, "norm": {"weight": "scale", "bias": "bias"}}


def config_from(
    params: Mapping[str, Tensor],
    *,
    temporal_downsample: tuple[bool, ...] | int = 2,
    activation: Activation = "swish",
    groups: int = 32,
    padding: Padding = "zeros",
    normalize_latents: bool = False,
) -> VQ3DConfig:
    """Settings that official weights were made with, read from their names and shapes.

    Args:
        params: official name to array, of a 3D tokenizer or of a 2D one (whose kernels have one axis less).
        temporal_downsample: not visible in the weights: a flag for each step between levels, flags too many are ignored as
            in the official code; or how many of the first steps halve time. Ignored for a 2D tokenizer.
        activation: not visible in the weights; "swish" in the released configs.
        groups: not visible in the weights; 32 in the official code.
        padding: not visible in the weights; "zeros" in the released configs.
        normalize_latents: not visible in the weights; off in the released configs.

    Returns:
        Settings, for ``VQ3D`` or, when no step halves time because the weights are 2D, for ``FrameVQ``.

    Raises:
        ValueError: when arrays that fix a size are missing.
    """
    shapes = {_bare(name): tuple(array.shape) for name, array in params.items()}
    deconv = _count(shapes, r"decoder/ConvTranspose_(\d+)/")
    # Between its first and its last convolution the decoder has one for each step.
    levels = (deconv + 1) if deconv else _count(shapes, r"decoder/Conv_(\d+)/") - 1
    blocks = [_count(shapes, rf"{part}/ResBlock_(\d+)/") for part in ("encoder", "decoder")]
    per_level = [total // (levels + 1) if levels > 0 else 0 for total in blocks]
    needed = ["encoder/Conv_0/kernel", "quantizer/codebook"]
    needed += [f"encoder/ResBlock_{level * per_level[0]}/Conv_0/kernel" for level in range(levels)]
    missing = [name for name in needed if name not in shapes]
    if missing or min(per_level) < 1 or any(total % (levels + 1) for total in blocks):
        raise ValueError(
            f"these are no MAGVIT tokenizer weights: {levels} levels, {blocks[0]} encoder and {blocks[1]} decoder blocks "
            f"found, missing {missing}; expected names like 'encoder/ResBlock_0/Conv_0/kernel'"
        )
    channels = shapes[needed[0]][-1]
    codebook_size, dim = shapes["quantizer/codebook"]
    flat = len(shapes[needed[0]]) == 4
    return VQ3DConfig(
        channels=channels,
        multipliers=tuple(shapes[name][-1] // channels for name in needed[2:]),
        temporal_downsample=_flags(0 if flat else temporal_downsample, levels - 1),
        encoder_blocks=per_level[0],
        decoder_blocks=per_level[1],
        quantizer=QuantizerConfig(codebook_size=codebook_size, dim=dim),
        normalize_latents=normalize_latents,
        downsample="conv" if _count(shapes, r"encoder/Conv_(\d+)/") > 2 else "average",
        upsample="deconv" if deconv else "nearest",
        activation=activation,
        norm=_norm_kind(shapes) or "group",
        groups=groups,
        padding=padding,
    )


def convert(state: Mapping[str, Tensor], config: VQ3DConfig) -> dict[str, Tensor]:
    """Official tokenizer weights as the state dict of ``VQ3D(config)``, or of ``FrameVQ(config)`` where they are 2D.

    Args:
        state: official name to array.
        config: settings of the model to fill.

    Returns:
        State dict, complete and of the right shapes; views of the given arrays where they can be.

    Raises:
        ValueError: naming every array that is missing, unexpected or of another shape.
    """
    if config.quantizer.kind != "vq":
        raise ValueError(f"config: got quantizer {config.quantizer.kind!r}, expected 'vq'")
    first = next((array for name, array in state.items() if _bare(name) == "encoder/Conv_0/kernel"), None)
    flat = first is not None and first.ndim == 4
    with torch.device("meta"):
        model = FrameVQ(config) if flat else VQ3D(config)
    return _convert(state, model, _tokenizer_names(config), "MAGVIT tokenizer")


def tokenizer_state_dict(params: Mapping[str, Tensor], config: VQ3DConfig) -> dict[str, Tensor]:
    """``convert`` in new memory.

    Args:
        params: official name to array.
        config: settings of the model to fill.

    Raises:
        ValueError: naming every array that is missing, unexpected or of another shape.
    """
    return _owned(convert(params, config))


def discriminator_config(
    params: Mapping[str, Tensor], size: tuple[int, int, int], *, groups: int = 32, blur_size: int = 0
) -> VideoDiscriminatorConfig:
    """Settings of official discriminator weights, read from their names and shapes.

    Args:
        params: official name to array.
        size: frames, height and width of the clips; the weights show only the product of the last map's axes.
        groups: not visible in the weights; 32 in the official code.
        blur_size: not visible in the weights; 4 where the official 2D one blurs.

    Returns:
        Settings.

    Raises:
        ValueError: when arrays that fix a size are missing, or the size does not fit them.
    """
    shapes = {_bare(name): tuple(array.shape) for name, array in params.items()}
    count = _count(shapes, r"ResBlock_(\d+)/")
    needed = ["Conv_0/kernel", "Dense_0/kernel", *(f"ResBlock_{index}/Conv_2/kernel" for index in range(count))]
    missing = [name for name in needed if name not in shapes]
    if missing or not count:
        raise ValueError(f"these are no MAGVIT discriminator weights: {count} blocks found, missing {missing}")
    channels = shapes["Conv_0/kernel"][-1]
    kind: Literal["clip", "frame"] = "frame" if len(shapes["Conv_0/kernel"]) == 4 else "clip"
    config = VideoDiscriminatorConfig(
        kind=kind,
        size=size,
        channels=channels,
        multipliers=tuple(shapes[name][-1] // channels for name in needed[2:]),
        norm=_norm_kind(shapes),
        groups=groups,
        blur_size=blur_size,
    )
    cells = math.prod(config.last_map if kind == "clip" else config.last_map[1:])
    rows, width = shapes["Dense_0/kernel"]
    if rows != cells * width:
        raise ValueError(f"size: got {size}, which leaves {cells} cells, expected {rows // width} as in the weights")
    return config


def discriminator_state_dict(params: Mapping[str, Tensor], config: VideoDiscriminatorConfig) -> dict[str, Tensor]:
    """Official discriminator weights as the state dict of ``build_video_discriminator(config)``.

    Args:
        params: official name to array.
        config: settings of the model to fill.

    Returns:
        State dict, complete and of the right shapes, in new memory.

    Raises:
        ValueError: naming every array that is missing, unexpected or of another shape.
    """
    with torch.device("meta"):
        model = build_video_discriminator(config)
    norm = _norm_name(config.norm)
    modules = {"conv_in": "Conv_0", "conv_out": "Conv_1", "dense1": "Dense_0", "dense2": "Dense_1"}
    modules["norm_out"] = f"{norm}_0"
    for index in range(len(model.blocks)):
        # The official block makes its convolutions in the order main, skip, main.
        for ours, official in (("conv1", "Conv_0"), ("shortcut", "Conv_1"), ("conv2", "Conv_2")):
            modules[f"blocks.{index}.{ours}"] = f"ResBlock_{index}/{official}"
        for number in (1, 2):
            modules[f"blocks.{index}.norm{number}"] = f"ResBlock_{index}/{norm}_{number - 1}"
    return _owned(_convert(params, model, modules, "MAGVIT discriminator"))


def _tokenizer_names(config: VQ3DConfig) -> dict[str, str]:
    """Our module name to the official one, for every module that has weights."""
    norm, steps = _norm_name(config.norm), len(config.multipliers) - 1
    modules: dict[str, str] = {"quantizer": "quantizer"}
    for part, resampler, per_level in (
        ("encoder", "downs", config.encoder_blocks),
        ("decoder", "ups", config.decoder_blocks),
    ):
        deconv = part == "decoder" and config.upsample == "deconv"
        numbered = part == "decoder" or config.downsample == "conv"
        for index in range(steps if numbered else 0):
            official = f"ConvTranspose_{index}" if deconv else f"Conv_{index + 1}"
            modules[f"{part}.{resampler}.{index}.conv"] = f"{part}/{official}"
        last = 1 if deconv or not numbered else steps + 1
        modules |= {f"{part}.conv_in": f"{part}/Conv_0", f"{part}.conv_out": f"{part}/Conv_{last}"}
        modules[f"{part}.norm_out"] = f"{part}/{norm}_0"
        for index in range((steps + 2) * per_level):
            ours, official = f"{part}.blocks.{index}", f"{part}/ResBlock_{index}"
            for number in (1, 2):
                modules[f"{ours}.norm{number}"] = f"{official}/{norm}_{number - 1}"
                modules[f"{ours}.conv{number}"] = f"{official}/Conv_{number - 1}"
            modules[f"{ours}.shortcut"] = f"{official}/Conv_2"
    return modules


def _convert(
    params: Mapping[str, Tensor], model: nn.Module, modules: Mapping[str, str], where: str
) -> dict[str, Tensor]:
    """The model's state dict by name, or all that is wrong at once, in official names."""
    arrays = {_bare(name): array for name, array in params.items()}
    flat = any(name.endswith("kernel") and array.ndim == 4 for name, array in arrays.items())
    official: dict[str, str] = {}
    expected: dict[str, tuple[int, ...]] = {}
    for key, empty in model.state_dict().items():
        module, _, leaf = key.rpartition(".")
        owner = model.get_submodule(module)
        names = _NAMES["norm" if isinstance(owner, nn.GroupNorm | nn.LayerNorm) else "kernel"]
        official[key] = f"{modules[module]}/{names.get(leaf, leaf)}"
        expected[official[key]] = tuple((_to_flax(empty, owner, flat) if leaf == "weight" else empty).shape)
    check_state(arrays, expected, where)
    return {
        key: _to_torch(arrays[name], model.get_submodule(key.rpartition(".")[0]))
        if key.endswith(".weight")
        else arrays[name]
        for key, name in official.items()
    }


def _to_torch(kernel: Tensor, owner: nn.Module) -> Tensor:
    """[kt, kh, kw, in, out] -> what ``owner`` holds; norms have one axis and stay."""
    if kernel.ndim == 1:
        return kernel
    if kernel.ndim == 2:
        return kernel.t()
    if isinstance(owner, nn.ConvTranspose3d):
        kernel = kernel if kernel.ndim == 5 else kernel.unsqueeze(0)
        return kernel.permute(3, 4, 0, 1, 2).flip(2, 3, 4)
    if isinstance(owner, nn.Conv2d):
        return kernel.permute(3, 2, 0, 1)
    kernel = kernel if kernel.ndim == 5 else kernel.unsqueeze(0)
    return kernel.permute(4, 3, 0, 1, 2)


def _to_flax(kernel: Tensor, owner: nn.Module, flat: bool) -> Tensor:
    """Shape of the inverse of ``_to_torch``; a kernel of one frame has no time axis where the weights are 2D."""
    if kernel.ndim == 1:
        return kernel
    if kernel.ndim == 2:
        return kernel.t()
    if isinstance(owner, nn.Conv2d):
        return kernel.permute(2, 3, 1, 0)
    kernel = kernel.permute(2, 3, 4, 0, 1) if isinstance(owner, nn.ConvTranspose3d) else kernel.permute(2, 3, 4, 1, 0)
    return kernel[0] if flat and len(kernel) == 1 else kernel


def _owned(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {key: array.clone(memory_format=torch.contiguous_format) for key, array in state.items()}


def _flags(temporal: tuple[bool, ...] | int, steps: int) -> tuple[bool, ...]:
    if isinstance(temporal, int):
        return tuple(step < temporal for step in range(steps))
    return tuple(bool(flag) for flag in temporal[:steps])


def _norm_name(norm: Norm | None) -> str:
    return "LayerNorm" if norm == "layer" else "GroupNorm"


def _norm_kind(shapes: Mapping[str, tuple[int, ...]]) -> Norm | None:
    """Which normalisation the names tell of, if any."""
    if any("LayerNorm_" in name for name in shapes):
        return "layer"
    return "group" if any("GroupNorm_" in name for name in shapes) else None


def _bare(name: str) -> str:
    return name.removeprefix("params/")


def _count(shapes: Mapping[str, tuple[int, ...]], pattern: str) -> int:
    """One more than the highest number that the pattern finds; 0 when it finds none."""
    found = (re.match(pattern, name) for name in shapes)
    return max((int(match[1]) for match in found if match), default=-1) + 1
