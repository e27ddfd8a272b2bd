"""Open-MAGVIT2's autoregressive transformer over ids in parts, against its official outputs.

Shapes: B batch, N positions, K parts.
"""

import pytest
import torch

from maskgen.published.open_magvit2 import transformer as magvit2_ar
from maskgen.published.open_magvit2.transformer import PartsTransformer, PartsTransformerConfig
from tests.parity.magvit2.recordings import names, recording, state


@pytest.mark.parametrize("name", names("ar_*.safetensors"))
@torch.no_grad()
def test_logits_and_losses(name: str) -> None:
    io, told = recording(name)
    official = state(io)
    side = round(told["block_size"] ** 0.5)
    config = magvit2_ar.config_from(official, heads=told["n_head"], axes=(side, side))
    width = told["dim"]
    assert config == PartsTransformerConfig(
        part_bits=tuple(told["factorized_bits"]),
        num_classes=told["class_num"],
        axes=(side, side),
        width=width,
        layers=told["spatial_n_layer"],
        part_layers=told["factorized_n_layer"],
        heads=told["n_head"],
        mlp_width=-(-int(8 * width / 3) // told["multiple_of"]) * told["multiple_of"],
        dropout=told["resid_dropout_p"],
    )
    model = PartsTransformer(config)
    model.load_state_dict(magvit2_ar.convert(official, config))
    model.eval()
    torch.testing.assert_close(model.rotary, io["freqs_cis"], atol=1e-6, rtol=0)
    tokens, labels = torch.stack((io["ids_pre"], io["ids_post"]), dim=-1), io["class_ids"].squeeze(-1)
    assert labels[-1] == config.num_classes  # the null class
    for got, part in zip(model(tokens, labels), ("pre", "post"), strict=True):
        torch.testing.assert_close(got, io[f"logits_{part}"], atol=1e-5, rtol=0)
    for got, part in zip(model.losses(tokens, labels), ("pre", "post"), strict=True):
        torch.testing.assert_close(got, io[f"loss_{part}"], atol=1e-5, rtol=0)
    known = {"ids_pre", "ids_post", "class_ids", "logits_pre", "logits_post", "loss_pre", "loss_post", "freqs_cis"}
    assert {key for key in io if not key.startswith("sd/")} == known
