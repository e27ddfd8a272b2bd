"""Key map of the official MaskGIT tokenizer and discriminator: flax names and layouts to ours.

Names are "/"-joined ("encoder/ResBlock_0/Conv_0/kernel"), with or without a leading "params/". Kernels are HWIO for
convolutions and (in, out) for dense layers there, OIHW and (out, in) here.
"""

import re
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from maskgen.checkpoint import check_state
from maskgen.tokenizers.image.vqgan import VQGAN, VQGANConfig
from maskgen.tokenizers.layers.conv2d import Activation
from maskgen.tokenizers.quantizers.vector import QuantizerConfig
from maskgen.tokenizers.training.discriminators.image import DiscriminatorConfig, StyleGANDiscriminator

__all__ = [
    "PUBLISHED",
    "config_from",
    "convert",
    "discriminator_state_dict",
    "tokenizer_config",
    "tokenizer_state_dict",
]


# The networks for 256 and 512 pixels have the same sizes and 54,515,587 weights each; only the weights differ.
PUBLISHED: dict[str, VQGANConfig] = {"maskgit-imagenet256": VQGANConfig(), "maskgit-imagenet512": VQGANConfig()}

_NORM = {"weight": "scale", "bias": "bias"}

_KERNEL = {"weight": "kernel", "bias": "bias"}


def config_from(params: Mapping[str, Tensor], *, activation: Activation = "swish", groups: int = 32) -> VQGANConfig:
    """Settings that official weights were made with, read from their names and shapes.

    Args:
        params: official name to array.
        activation: not visible in the weights; "swish" in the releases.
        groups: not visible in the weights; 32 in the official code.

    Returns:
        Settings, with the official "branch" shortcut.

    Raises:
        ValueError: when arrays that fix a size are missing.
    """
    shapes = {_bare(name): tuple(array.shape) for name, array in params.items()}
    levels = _count(shapes, r"decoder/Conv_(\d+)/") - 1
    total = _count(shapes, r"encoder/ResBlock_(\d+)/")
    # Every level and the middle hold the same number of blocks.
    res_blocks = total // (levels + 1) if levels > 0 else 0
    needed = ["encoder/Conv_0/kernel", "quantizer/codebook"]
    needed += [f"encoder/ResBlock_{level * res_blocks}/Conv_0/kernel" for level in range(levels)]
    missing = [name for name in needed if name not in shapes]
    if missing or res_blocks < 1 or total % (levels + 1):
        raise ValueError(
            f"these are no MaskGIT tokenizer weights: {levels} levels and {total} encoder blocks found, "
            f"missing {missing}; expected names like 'encoder/ResBlock_0/Conv_0/kernel'"
        )
    channels = shapes[needed[0]][-1]
    codebook_size, dim = shapes["quantizer/codebook"]
    return VQGANConfig(
        channels=channels,
        multipliers=tuple(shapes[name][-1] // channels for name in needed[2:]),
        res_blocks=res_blocks,
        quantizer=QuantizerConfig(codebook_size=codebook_size, dim=dim),
        downsample="conv" if _count(shapes, r"encoder/Conv_(\d+)/") > 2 else "average",
        activation=activation,
        shortcut="branch",
        groups=groups,
    )


tokenizer_config = config_from


def convert(state: Mapping[str, Tensor], config: VQGANConfig) -> dict[str, Tensor]:
    """Official tokenizer weights as the state dict of ``VQGAN(config)``.

    Args:
        state: official name to array.
        config: settings of the model to fill.

    Returns:
        State dict, complete and of the right shapes; views of the given arrays, so not contiguous.

    Raises:
        ValueError: naming every array that is missing, unexpected or of another shape.
    """
    if config.quantizer.kind != "vq" or config.shortcut != "branch":
        raise ValueError(
            f"config: got quantizer {config.quantizer.kind!r} and shortcut {config.shortcut!r}, "
            "expected 'vq' and 'branch', which the official weights are made for"
        )
    with torch.device("meta"):
        model = VQGAN(config)
    return _convert(state, model, _tokenizer_names(config), "MaskGIT tokenizer")


def tokenizer_state_dict(params: Mapping[str, Tensor], config: VQGANConfig | None = None) -> dict[str, Tensor]:
    """``convert`` with the sizes that the weights show, in new memory.

    Args:
        params: official name to array.
        config: settings of the model to fill; by default ``config_from(params)``.

    Raises:
        ValueError: naming every array that is missing, unexpected or of another shape.
    """
    return _owned(convert(params, config or config_from(params)))


def discriminator_state_dict(params: Mapping[str, Tensor], config: DiscriminatorConfig) -> dict[str, Tensor]:
    """Official discriminator weights as the state dict of ``StyleGANDiscriminator(config)``.

    Args:
        params: official name to array.
        config: settings of the model to fill.

    Returns:
        State dict, complete and of the right shapes, in new memory.

    Raises:
        ValueError: naming every array that is missing, unexpected or of another shape.
    """
    with torch.device("meta"):
        model = StyleGANDiscriminator(config)
    modules = {"conv_in": "Conv_0", "conv_out": "Conv_1", "dense1": "Dense_0", "dense2": "Dense_1"}
    for index in range(len(model.blocks)):
        # The official block makes its convolutions in the order main, skip, main.
        for ours, official in (("conv1", "Conv_0"), ("shortcut", "Conv_1"), ("conv2", "Conv_2")):
            modules[f"blocks.{index}.{ours}"] = f"ResBlock_{index}/{official}"
    return _owned(_convert(params, model, modules, "MaskGIT discriminator"))


def _tokenizer_names(config: VQGANConfig) -> dict[str, str]:
    """Our module name to the official one, for every module that has weights."""
    steps = len(config.multipliers) - 1
    modules: dict[str, str] = {"quantizer": "quantizer"}
    for part in ("encoder", "decoder"):
        resample = [] if part == "encoder" and config.downsample == "average" else list(range(steps))
        modules[f"{part}.conv_in"] = f"{part}/Conv_0"
        for index in resample:
            modules[f"{part}.{'downs' if part == 'encoder' else 'ups'}.{index}.conv"] = f"{part}/Conv_{index + 1}"
        modules[f"{part}.conv_out"] = f"{part}/Conv_{len(resample) + 1}"
        modules[f"{part}.norm_out"] = f"{part}/GroupNorm_0"
        for index in range((steps + 2) * config.res_blocks):
            ours, official = f"{part}.blocks.{index}", f"{part}/ResBlock_{index}"
            for number in (1, 2):
                modules[f"{ours}.norm{number}"] = f"{official}/GroupNorm_{number - 1}"
                modules[f"{ours}.conv{number}"] = f"{official}/Conv_{number - 1}"
            modules[f"{ours}.shortcut"] = f"{official}/Conv_2"
    return modules


def _convert(
    params: Mapping[str, Tensor], model: nn.Module, modules: Mapping[str, str], where: str
) -> dict[str, Tensor]:
    """The model's state dict by name, or all that is wrong at once, in official names."""
    arrays = {_bare(name): array for name, array in params.items()}
    official: dict[str, str] = {}
    for key in model.state_dict():
        module, _, leaf = key.rpartition(".")
        names = _NORM if isinstance(model.get_submodule(module), nn.GroupNorm) else _KERNEL
        official[key] = f"{modules[module]}/{names.get(leaf, leaf)}"
    expected = {
        official[key]: (_to_flax(empty) if key.endswith(".weight") else empty).shape
        for key, empty in model.state_dict().items()
    }
    check_state(arrays, expected, where)
    return {key: _to_torch(arrays[name]) if key.endswith(".weight") else arrays[name] for key, name in official.items()}


def _owned(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {key: array.clone(memory_format=torch.contiguous_format) for key, array in state.items()}


def _to_torch(kernel: Tensor) -> Tensor:
    """HWIO -> OIHW, (in, out) -> (out, in); norms have one axis and stay."""
    if kernel.ndim == 4:
        return kernel.permute(3, 2, 0, 1)
    return kernel.t() if kernel.ndim == 2 else kernel


def _to_flax(kernel: Tensor) -> Tensor:
    """Inverse of ``_to_torch``."""
    if kernel.ndim == 4:
        return kernel.permute(2, 3, 1, 0)
    return kernel.t() if kernel.ndim == 2 else kernel


def _bare(name: str) -> str:
    return name.removeprefix("params/")


def _count(shapes: Mapping[str, tuple[int, ...]], pattern: str) -> int:
    """One more than the highest number that the pattern finds; 0 when it finds none."""
    found = (re.match(pattern, name) for name in shapes)
    return max((int(match[1]) for match in found if match), default=-1) + 1
