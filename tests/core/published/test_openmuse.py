"""open-muse's names and guidance beyond what is recorded: incomplete weights, and ramps that it has not."""

import pytest
import torch

from maskgen.published.amused.transformer import UVit2D, UVit2DConfig
from maskgen.published.openmuse import config_from, convert, diffusers_names, openmuse_weights
from maskgen.sampling.guidance import Guidance
from maskgen.tasks.published.entries.families import looks_like
from tests.parity.support import files, load


def official() -> dict[str, torch.Tensor]:
    return load(files("muse", "openmuse_uvit.weights.safetensors")[0])


def test_what_is_missing_is_named() -> None:
    state = official()
    gate = "transformer_layers.0.ffn.wi_0.weight"
    assert gate in state
    with pytest.raises(ValueError, match=f"{gate.replace('wi_0', 'wi_1')} is there, but {gate} is missing"):
        diffusers_names({name: tensor for name, tensor in state.items() if name != gate})
    config = config_from(state, heads=1, block_heads=1, micro_width=8)
    with pytest.raises(ValueError, match="foo"):
        convert({**state, "foo": torch.zeros(1)}, config)


def test_weights_that_are_there_twice_are_refused() -> None:
    state = official()
    with pytest.raises(ValueError, match=r"both mean cond_embed\.linear_1\.weight"):
        diffusers_names({**state, "cond_embed.linear_1.weight": state["cond_embed.0.weight"]})


def test_the_family_is_told_by_the_names() -> None:
    assert looks_like(official()) == "openmuse-transformer"
    assert looks_like(diffusers_names(official())) == "amused-transformer"


def test_it_is_the_network_of_amused() -> None:
    config = config_from(official(), heads=4, block_heads=3, micro_width=8)
    assert isinstance(config, UVit2DConfig)
    assert convert(official(), config).keys() == UVit2D(config).state_dict().keys()


def test_weights_of_the_steps() -> None:
    assert openmuse_weights(Guidance(scale=7.0), 3) == [7, 7, 7]
    assert openmuse_weights(Guidance(scale=9.0, ramp="linear"), 3) == [-1, 4, 9]
    assert openmuse_weights(Guidance(scale=8.0, ramp="cosine"), 3) == [3, 6, 8]  # floor(9 x 0.5), floor(9 x 0.87), 9
    with pytest.raises(ValueError, match="guidance.ramp: got 'power-cosine' with the sampler 'openmuse'"):
        openmuse_weights(Guidance(scale=1.0, ramp="power-cosine"), 3)
