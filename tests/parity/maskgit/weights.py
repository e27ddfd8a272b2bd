"""Official MaskGIT weights in new memory, and those of the discriminator, which no released file holds."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from maskgen.published import maskgit
from maskgen.published.maskgit import config_from as transformer_config
from maskgen.tokenizers.image.vqgan import VQGANConfig
from maskgen.tokenizers.published.flax_names import convert_flax
from maskgen.tokenizers.published.image.maskgit import config_from as tokenizer_config
from maskgen.tokenizers.published.image.maskgit import convert
from maskgen.tokenizers.training.discriminators.image import DiscriminatorConfig, StyleGANDiscriminator
from tests.parity.support import files, load, metadata

__all__ = [
    "discriminator_modules",
    "discriminator_state_dict",
    "owned",
    "recorded_params",
    "tokenizer_config",
    "tokenizer_state_dict",
    "transformer_config",
    "transformer_state_dict",
]


def recorded_params(name: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """All official weights of one set, be they in one file or in several, and its settings."""
    found: dict[str, Tensor] = {}
    paths = files("maskgit", f"{name}_params*.safetensors")
    for path in paths:
        found |= load(path)
    return found, metadata(paths[0])


def tokenizer_state_dict(params: Mapping[str, Tensor], config: VQGANConfig | None = None) -> dict[str, Tensor]:
    """``convert`` with the sizes that the weights show, in new memory."""
    return owned(convert(params, config or tokenizer_config(params)))


def transformer_state_dict(params: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """``convert`` with the sizes that the weights show, in new memory; how table and positions divide does not matter."""
    (positions,) = (array for name, array in params.items() if name.endswith("position_embeddings/embedding"))
    config = transformer_config(params, vocab_size=2, axes=(len(positions) - 1,))
    return owned(maskgit.convert(params, config))


def discriminator_state_dict(params: Mapping[str, Tensor], config: DiscriminatorConfig) -> dict[str, Tensor]:
    """Official discriminator weights as the state dict of ``StyleGANDiscriminator(config)``, in new memory."""
    with torch.device("meta"):
        model = StyleGANDiscriminator(config)
    return owned(convert_flax(params, model, discriminator_modules(len(model.blocks)), "MaskGIT discriminator"))


def discriminator_modules(blocks: int) -> dict[str, str]:
    """Our module name to the official one."""
    modules = {"conv_in": "Conv_0", "conv_out": "Conv_1", "dense1": "Dense_0", "dense2": "Dense_1"}
    for index in range(blocks):
        # The official block makes its convolutions in the order main, skip, main.
        for ours, official in (("conv1", "Conv_0"), ("shortcut", "Conv_1"), ("conv2", "Conv_2")):
            modules[f"blocks.{index}.{ours}"] = f"ResBlock_{index}/{official}"
    return modules


def owned(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same weights in memory of their own."""
    return {key: array.clone(memory_format=torch.contiguous_format) for key, array in state.items()}
