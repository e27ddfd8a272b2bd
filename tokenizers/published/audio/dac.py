"""DAC, the Descript Audio Codec (Kumar et al. 2023, arXiv 2306.06546), through transformers' ``DacModel``.

``DacModel`` brings encoder, quantizers and decoder; padding to whole hops, the exact frame rate and the search for the
nearest code are ours: its ``encode`` does not pad, its config rounds the frame rate up, and its quantizer drops codes at
random in training mode.

Shapes: B batch, S samples, T frames, K codebooks used, V codes, D width of a code, Z width between encoder and decoder.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from torch import Tensor

from maskgen.checkpoint import empty_shapes, read_json, renamed
from maskgen.tokenizers.published.audio.descript_blocks import DescriptTokenizer, Parts, check_sizes
from maskgen.tokenizers.published.audio.descript_files import find_sizes, fold_weight_norm, read_descript
from maskgen.tokenizers.settings import freeze_lists

# Settings of transformers' config.json under their official names.
_SETTINGS = {
    "encoder_hidden_size": "encoder_dim",
    "downsampling_ratios": "encoder_rates",
    "hidden_size": "latent_dim",
    "decoder_hidden_size": "decoder_dim",
    "upsampling_ratios": "decoder_rates",
    "sampling_rate": "sample_rate",
    "n_codebooks": "n_codebooks",
    "codebook_size": "codebook_size",
    "codebook_dim": "codebook_dim",
}

_UNIT = {"snake1": 0, "conv1": 1, "snake2": 2, "conv2": 3}


@dataclass(frozen=True, kw_only=True)
class DACTokenizerConfig:
    """Settings; the defaults are the published 44.1 kHz model.

    Attributes:
        sample_rate: samples a second.
        encoder_dim: width of the first layer; each level doubles it.
        rates: stride of each level of the encoder; the decoder goes through them backwards.
        latent_dim: Z; 0 for what the encoder's levels make of ``encoder_dim``.
        decoder_dim: width of the decoder's first layer; each level halves it.
        quantizers: levels the weights have.
        codebooks: K, how many of them, coarse first, are used; 0 for all.
        codebook_size: V; a power of two.
        codebook_dim: D.
    """

    sample_rate: int = 44100
    encoder_dim: int = 64
    rates: tuple[int, ...] = (2, 4, 8, 8)
    latent_dim: int = 0
    decoder_dim: int = 1536
    quantizers: int = 9
    codebooks: int = 0
    codebook_size: int = 1024
    codebook_dim: int = 8

    def __post_init__(self) -> None:
        freeze_lists(self)
        if self.latent_dim == 0:
            object.__setattr__(self, "latent_dim", self.encoder_dim * 2 ** len(self.rates))
        if self.codebooks == 0:
            object.__setattr__(self, "codebooks", self.quantizers)
        check_sizes(self, *vars(self), levels=len(self.rates))
        if self.codebooks > self.quantizers:
            raise ValueError(
                f"codebooks: got {self.codebooks}, expected 1 to {self.quantizers}, the quantizers there are"
            )
        if self.codebook_size & (self.codebook_size - 1):
            raise ValueError(f"codebook_size: got {self.codebook_size}, expected a power of two (transformers' DAC)")

    @property
    def hop(self) -> int:
        """Samples a frame."""
        return math.prod(self.rates)


class DACTokenizer(DescriptTokenizer):
    """DAC as a tokenizer.

    Signal: float [B, 1, S] in about [-1, 1] at ``sample_rate``; ``decode`` gives [B, 1, T x hop] in [-1, 1].

    Args:
        config: settings.

    Raises:
        ImportError: transformers is missing.
    """

    def __init__(self, config: DACTokenizerConfig) -> None:
        super().__init__()
        self.config: DACTokenizerConfig = config
        self.model = _build(config)

    def parts(self) -> Parts:
        """Encoder, the quantizers in use, decoder."""
        return Parts(
            self.model.encoder, list(self.model.quantizer.quantizers)[: self.config.codebooks], self.model.decoder
        )


def _build(config: DACTokenizerConfig) -> Any:
    try:
        from transformers import DacConfig, DacModel
    except ImportError:
        raise ImportError('DAC needs transformers; install it with pip install "maskgen[text]"') from None
    sizes: dict[str, Any] = {
        "encoder_hidden_size": config.encoder_dim,
        "downsampling_ratios": list(config.rates),
        "hidden_size": config.latent_dim,
        "decoder_hidden_size": config.decoder_dim,
        "n_codebooks": config.quantizers,
        "codebook_size": config.codebook_size,
        "codebook_dim": config.codebook_dim,
        "sampling_rate": config.sample_rate,
    }
    return DacModel(DacConfig(**sizes))


PUBLISHED: Final[dict[str, DACTokenizerConfig]] = {
    "dac_16khz": DACTokenizerConfig(sample_rate=16000, rates=(2, 4, 5, 8), quantizers=12),
    "dac_24khz": DACTokenizerConfig(sample_rate=24000, rates=(2, 4, 5, 8), quantizers=32),
    "dac_44khz": DACTokenizerConfig(),
    "dac_44khz_16kbps": DACTokenizerConfig(latent_dim=128, quantizers=18),
}
"""Published name (hub user descript, but for the last) to full-size settings. MIT code and weights."""


def _official(name: str, levels: int) -> str:
    """The name in transformers of a weight in official words, in a network of so many levels."""
    stack = "block" if name.startswith("encoder.") else "model"
    if match := re.fullmatch(r"(encoder|decoder)\.block\.(\d+)\.(?:res_unit(\d)\.)?(\w+)\.(\w+)", name):
        part, level, unit, layer, leaf = match.groups()
        start = f"{part}.{stack}.{int(level) + 1}.block"
        first = 0 if part == "encoder" else 2  # the decoder's strided layers come before its units
        if unit and layer in _UNIT:
            return f"{start}.{int(unit) - 1 + first}.block.{_UNIT[layer]}.{leaf}"
        indices = {"snake1": 3, "conv1": 4} if part == "encoder" else {"snake1": 0, "conv_t1": 1}
        return f"{start}.{indices[layer]}.{leaf}" if layer in indices and not unit else name
    if match := re.fullmatch(r"(encoder|decoder)\.(conv1|snake1|conv2)\.(\w+)", name):
        index = {"conv1": 0, "snake1": levels + 1, "conv2": levels + 2}[match[2]]
        return f"{match[1]}.{stack}.{index}.{match[3]}"
    return name  # the quantizers have the same names


def _is_transformers(state: Mapping[str, Tensor]) -> bool:
    return any(name.startswith(("encoder.conv1.", "decoder.conv1.")) for name in state)


def convert(state: Mapping[str, Tensor], config: DACTokenizerConfig) -> dict[str, Tensor]:
    """Weights of descript-audio-codec or of transformers as the state dict of ``DACTokenizer(config)``.

    Args:
        state: name in either layout to weight, with weight norm or plain.
        config: settings of the model to fill.

    Raises:
        ValueError: naming every weight that is missing, unexpected or of another shape, by the names of the layout that
            came in; or these are LAC's.
        ImportError: transformers is missing.
    """
    plain = fold_weight_norm(state, "DAC")
    _check_family(plain, "DAC")
    official = (
        (lambda name: name) if _is_transformers(plain) else functools.partial(_official, levels=len(config.rates))
    )
    found = renamed(plain, empty_shapes(_build, config), official, "DAC")
    return {f"model.{name}": weight for name, weight in found.items()}


def dac_from_files(
    path: str | Path, *, codebooks: int = 0, sample_rate: int | None = None
) -> tuple[DACTokenizerConfig, dict[str, Tensor]]:
    """Settings and weights of a DAC on disk.

    Args:
        path: an official ``.pth`` (``{"state_dict", "metadata"}``), a folder of transformers, or its weights file; the
            ``config.json`` beside that one is read where it exists.
        codebooks: K, how many codebooks to use; 0 for all.
        sample_rate: needed for bare weights alone, which show all sizes but this one.

    Returns:
        Settings, and the state dict of ``DACTokenizer(settings)``.

    Raises:
        FileNotFoundError: there is no such file, or the folder holds none.
        ValueError: a torch.package archive, a damaged file, or weights that do not fit.
        ImportError: transformers is missing.
    """
    source = _weights_file(Path(path))
    state, stated = read_descript(source)
    _check_family(state, str(source))
    named: Mapping[str, Tensor] = state
    if _is_transformers(state):
        levels = len({name.split(".")[2] for name in state if name.startswith("encoder.block.")})
        named = {_official(name, levels): weight for name, weight in state.items()}
        stated = _settings(source.parent / "config.json")
    sizes = find_sizes(named, stated, sample_rate, str(source))
    rates = sizes.encoder_rates
    if sizes.decoder_rates != rates[::-1]:
        raise ValueError(
            f"{source}: decoder rates {sizes.decoder_rates}, expected {rates[::-1]}, the encoder's backwards: "
            "transformers' DAC has no others"
        )
    config = DACTokenizerConfig(
        sample_rate=sizes.sample_rate,
        encoder_dim=sizes.encoder_dim,
        rates=rates,
        latent_dim=sizes.latent_dim,
        decoder_dim=sizes.decoder_dim,
        quantizers=sizes.n_codebooks,
        codebook_size=sizes.codebook_size,
        codebook_dim=sizes.codebook_dim,
    )
    # Set apart: too many codebooks in use is the caller's error, not the file's.
    return dataclasses.replace(config, codebooks=codebooks), convert(state, config)


def _check_family(state: Mapping[str, Tensor], where: str) -> None:
    if any(".mrf_blocks." in name for name in state):
        raise ValueError(f"{where}: LAC weights: the decoder has branches (mrf_blocks); they are read by lac_from_file")


def _weights_file(path: Path) -> Path:
    if not path.is_dir():
        return path
    names = ("model.safetensors", "pytorch_model.bin")
    found = next((path / name for name in names if (path / name).is_file()), None)
    if found is None:
        raise FileNotFoundError(f"{path}: no weights; expected {names[0]} or {names[1]}")
    return found


def _settings(path: Path) -> dict[str, Any]:
    content = read_json(path) if path.is_file() else {}
    if not isinstance(content, dict):
        raise ValueError(f"{path}: holds a {type(content).__name__}, expected the settings of a DacModel")
    return {ours: content[theirs] for theirs, ours in _SETTINGS.items() if theirs in content}
