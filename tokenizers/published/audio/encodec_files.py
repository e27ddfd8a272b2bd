"""Published EnCodec weights: the official ``.th`` files, and folders or files of the Hugging Face Hub.

Shapes: K codebooks, V codes, D width of a code.
"""

import dataclasses
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from torch import Tensor

from maskgen.checkpoint import empty_shapes, read_json, renamed
from maskgen.tokenizers.published.audio.encodec import EncodecTokenizer, EncodecTokenizerConfig
from maskgen.weights.files import read_weights

PUBLISHED: Final[dict[str, EncodecTokenizerConfig]] = {
    "encodec_24khz": EncodecTokenizerConfig.encodec_24khz(),
    "encodec_48khz": EncodecTokenizerConfig.encodec_48khz(),
    "encodec_32khz": EncodecTokenizerConfig.encodec_32khz(),
}


# From names of the package, and of files that transformers wrote before torch moved weight norm, to ours.
_RULES: Final = (
    (r"^codec\.", ""),
    (r"^(encoder|decoder)\.model\.", r"\1.layers."),
    (r"\.(conv\.conv|convtr\.convtr)\.(?=weight|bias)", ".conv."),
    (r"\.(conv|convtr)\.norm\.", ".norm."),
    (r"\.weight_g$", ".parametrizations.weight.original0"),
    (r"\.weight_v$", ".parametrizations.weight.original1"),
    (r"^quantizer\.vq\.layers\.(\d+)\._codebook\.", r"quantizer.layers.\1.codebook."),
)

_VISIBLE = ("channels", "ratios", "filters", "residual_layers", "lstm_layers", "dim", "codebook_size", "norm")


def transformers_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights under the names of ``EncodecTokenizer``, be they the package's, transformers' or ours.

    Raises:
        ValueError: two names become one.
    """
    found: dict[str, Tensor] = {}
    for name, tensor in state.items():
        new = name
        for pattern, replacement in _RULES:
            new = re.sub(pattern, replacement, new)
        if f"codec.{new}" in found:
            raise ValueError(f"{name}: these weights are there twice, in two layouts")
        found[f"codec.{new}"] = tensor
    return found


def config_from(state: Mapping[str, Tensor]) -> EncodecTokenizerConfig:
    """Sizes of weights of either layout.

    What shapes do not show (sample rate, causality, bandwidths) is that of the published model which is nearest.

    Args:
        state: official name to tensor.

    Returns:
        Sizes; all codebooks are in use where the file has another number of them than the published model.

    Raises:
        ValueError: when weights that fix a size are missing.
    """
    named = transformers_names(state)
    try:
        seen = _visible(named)
        quantizers = _count(named, r"codec\.quantizer\.layers\.(\d+)\.")
    except (KeyError, ValueError, IndexError) as error:
        raise ValueError(f"EnCodec: weights that show its sizes are missing ({error})") from None

    def likeness(config: EncodecTokenizerConfig) -> int:
        return sum(getattr(config, name) == seen[name] for name in (*_VISIBLE, "conv_shortcut"))

    nearest = max(PUBLISHED.values(), key=likeness)
    if quantizers == nearest.quantizers and seen["codebook_size"] == nearest.codebook_size:
        return dataclasses.replace(nearest, **seen)
    bits = int(seen["codebook_size"]).bit_length() - 1
    rate = -(-nearest.sample_rate // math.prod(seen["ratios"]))
    bandwidth = (quantizers + 1e-6) * rate * bits / 1000  # a little more: quotients of floats may fall short
    return dataclasses.replace(nearest, **seen, bandwidth=bandwidth, bandwidths=(bandwidth,))


def convert(state: Mapping[str, Tensor], config: EncodecTokenizerConfig) -> dict[str, Tensor]:
    """Official weights as the state dict of ``EncodecTokenizer(config)`` (and of the package's tokenizer).

    Args:
        state: names of the ``encodec`` package or of transformers.
        config: sizes of the model to fill.

    Returns:
        State dict: the given tensors themselves.

    Raises:
        ValueError: every name that is missing, unexpected or mis-shaped.
    """
    return renamed(transformers_names(state), empty_shapes(EncodecTokenizer, config), str, "EnCodec")


def encodec_from_files(path: str | Path) -> tuple[EncodecTokenizerConfig, dict[str, Tensor]]:
    """Config and state dict of a weights file, or of a folder of the Hub.

    Args:
        path: official ``.th`` file, ``model.safetensors``, ``pytorch_model.bin``, or a folder with one of the latter two
            and transformers' ``config.json``, which then tells the sizes.

    Raises:
        FileNotFoundError: nothing there.
        ValueError: damaged, of another model, or of settings that are not supported.
    """
    source = Path(path)
    file = source
    if source.is_dir():
        there = [source / name for name in ("model.safetensors", "pytorch_model.bin") if (source / name).is_file()]
        if not there:
            raise FileNotFoundError(f"{source}: holds neither model.safetensors nor pytorch_model.bin")
        file = there[0]
    state = read_weights(file)
    try:
        config = _config_of_folder(source) if source.is_dir() else config_from(state)
        return config, convert(state, config)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None


def _visible(named: Mapping[str, Tensor]) -> dict[str, Any]:
    """The sizes that shapes show."""
    grouped = "codec.encoder.layers.0.norm.weight" in named
    leaf = "weight" if grouped else "parametrizations.weight.original1"
    ends = {}
    for half in ("encoder", "decoder"):
        ends[half] = _count(named, rf"codec\.{half}\.layers\.(\d+)\.") - 1
    first = named[f"codec.encoder.layers.0.conv.{leaf}"].shape
    # Transposed convolutions are the decoder's layers whose kernels are two strides wide and whose width halves.
    stride_layers = [
        shape
        for number in range(1, ends["decoder"])
        if (name := f"codec.decoder.layers.{number}.conv.{leaf}") in named and (shape := named[name].shape)
    ]
    blocks = _count_of(named, r"codec\.decoder\.layers\.(\d+)\.block\.")
    return {
        "channels": first[1],
        "filters": first[0],
        "ratios": tuple(shape[2] // 2 for shape in stride_layers),
        "residual_layers": blocks // max(1, len(stride_layers)),
        "lstm_layers": _count(named, r"codec\.encoder\.layers\.\d+\.lstm\.weight_hh_l(\d+)$"),
        "dim": named["codec.quantizer.layers.0.codebook.embed"].shape[1],
        "codebook_size": named["codec.quantizer.layers.0.codebook.embed"].shape[0],
        "norm": "time_group_norm" if grouped else "weight_norm",
        "conv_shortcut": any(".shortcut." in name for name in named),
    }


def _numbers(named: Mapping[str, Tensor], pattern: str) -> set[int]:
    found = {int(match[1]) for name in named if (match := re.match(pattern, name))}
    if not found:
        raise ValueError(f"no {pattern}")
    return found


def _count(named: Mapping[str, Tensor], pattern: str) -> int:
    """One more than the highest number."""
    return max(_numbers(named, pattern)) + 1


def _count_of(named: Mapping[str, Tensor], pattern: str) -> int:
    """How many numbers."""
    return len(_numbers(named, pattern))


# What the networks here have no setting for, and the value they have.
_FIXED: Final = {
    **{"kernel_size": 7, "last_kernel_size": 7, "residual_kernel_size": 3, "dilation_growth_rate": 2, "compress": 2},
    **{"pad_mode": "reflect", "trim_right_ratio": 1.0},
}


def _config_of_folder(folder: Path) -> EncodecTokenizerConfig:
    """Transformers' ``config.json`` as ours; bandwidth 6 where there is one, else the lowest."""
    told = read_json(folder / "config.json")
    if not isinstance(told, dict) or told.get("model_type") != "encodec":
        kind = told.get("model_type") if isinstance(told, dict) else type(told).__name__
        raise ValueError(f"config.json is of {kind!r}, expected model_type 'encodec'")
    for name, value in _FIXED.items():
        if told.get(name, value) != value:
            raise ValueError(f"config.json has {name} {told[name]}, expected {value}: no published EnCodec differs")
    names = {
        **{"bandwidths": "target_bandwidths", "sample_rate": "sampling_rate", "channels": "audio_channels"},
        **{"ratios": "upsampling_ratios", "filters": "num_filters", "residual_layers": "num_residual_layers"},
        **{"lstm_layers": "num_lstm_layers", "dim": "hidden_size", "codebook_size": "codebook_size"},
        **{"causal": "use_causal_conv", "norm": "norm_type", "normalize": "normalize"},
        "conv_shortcut": "use_conv_shortcut",
    }
    values = {ours: told[theirs] for ours, theirs in names.items() if theirs in told}  # our defaults are theirs
    offered = tuple(float(value) for value in values.pop("bandwidths", PUBLISHED["encodec_24khz"].bandwidths))
    if told.get("codebook_dim") not in (None, values.get("dim", 128)):
        raise ValueError(f"config.json has codebook_dim {told['codebook_dim']}, expected hidden_size")
    return EncodecTokenizerConfig(bandwidth=6.0 if 6.0 in offered else offered[0], bandwidths=offered, **values)
