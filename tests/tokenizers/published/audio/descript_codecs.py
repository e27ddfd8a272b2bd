"""Tiny DACs and LACs for the tests, and their weights as the official code names them."""

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from maskgen.tokenizers.published.audio import lac
from maskgen.tokenizers.published.audio.dac import DACTokenizer, DACTokenizerConfig
from maskgen.tokenizers.published.audio.descript_blocks import DescriptTokenizer
from maskgen.tokenizers.published.audio.lac import LACConfig, LACTokenizer

SMALL = {"encoder_dim": 4, "decoder_dim": 16, "codebook_size": 16, "codebook_dim": 3}
DAC_SMALL = DACTokenizerConfig(sample_rate=400, rates=(2, 4), quantizers=3, **SMALL)
CASES: dict[str, Callable[[], DescriptTokenizer]] = {
    "dac": lambda: DACTokenizer(DAC_SMALL),
    "dac-odd": lambda: DACTokenizer(dataclasses.replace(DAC_SMALL, rates=(2, 5), latent_dim=8, codebooks=2)),
    "lac": lambda: LACTokenizer(
        LACConfig(sample_rate=400, encoder_rates=(2, 4), decoder_rates=(2, 2, 2), codebooks=3, **SMALL)
    ),
    "lac-odd": lambda: LACTokenizer(
        LACConfig(sample_rate=400, encoder_rates=(6, 2), decoder_rates=(3, 4), codebooks=2, **SMALL)
    ),
}


def lively(codec: DescriptTokenizer) -> DescriptTokenizer:
    """Weights under which the codes vary and the sound is not silent."""
    with torch.no_grad():
        for module in codec.modules():
            if isinstance(module, nn.Conv1d | nn.ConvTranspose1d):
                module.reset_parameters()
        for quantizer in codec.parts().quantizers:
            nn.init.normal_(quantizer.codebook.weight)
            nn.init.zeros_(quantizer.in_proj.bias)  # else all latents point the same way
    return codec.eval()


def small_dac(**changes: Any) -> DACTokenizer:
    torch.manual_seed(4)
    found = lively(DACTokenizer(dataclasses.replace(DAC_SMALL, **changes)))
    assert isinstance(found, DACTokenizer)
    return found


def small_lac() -> LACTokenizer:
    torch.manual_seed(4)
    found = lively(CASES["lac"]())
    assert isinstance(found, LACTokenizer)
    return found


def official_lac(codec: LACTokenizer) -> dict[str, Tensor]:
    return {lac._official(name): weight for name, weight in codec.state_dict().items()}


def with_weight_norm(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Convolutions as length and direction, the latter of another length."""
    found = {}
    for name, weight in state.items():
        if weight.ndim == 3 and name.endswith(".weight"):
            found[f"{name}_g"] = torch.linalg.vector_norm(weight, dim=(1, 2), keepdim=True)
            found[f"{name}_v"] = weight * 3
        else:
            found[name] = weight
    return found


def official_dac(config: DACTokenizerConfig, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights of transformers under the names of descript-audio-codec, written out from its structure."""
    levels = len(config.rates)
    names = {"encoder.conv1": "encoder.block.0", "decoder.conv1": "decoder.model.0"}
    for part, stack in (("encoder", "block"), ("decoder", "model")):
        names[f"{part}.snake1"] = f"{part}.{stack}.{levels + 1}"
        names[f"{part}.conv2"] = f"{part}.{stack}.{levels + 2}"
        for level in range(levels):
            theirs, ours = f"{part}.{stack}.{level + 1}.block", f"{part}.block.{level}"
            order = [f"{ours}.res_unit{unit}" for unit in (1, 2, 3)]
            order = [*order, "snake1", "conv1"] if part == "encoder" else ["snake1", "conv_t1", *order]
            for index, layer in enumerate(order):
                if "res_unit" in layer:
                    for inner, leaf in enumerate(("snake1", "conv1", "snake2", "conv2")):
                        names[f"{layer}.{leaf}"] = f"{theirs}.{index}.block.{inner}"
                else:
                    names[f"{ours}.{layer}"] = f"{theirs}.{index}"
    found = {}
    for name, weight in state.items():
        stem, _, leaf = name.removeprefix("model.").rpartition(".")
        found[f"{names.get(stem, stem)}.{leaf}"] = weight
    return found
