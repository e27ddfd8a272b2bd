"""The transformers, critic and training rule of lucidrains' Muse against its own code.

Shapes: B batch, N tokens, K codes.
"""

import pytest
import torch
from torch import Tensor

from maskgen.conditioning import Cond
from maskgen.published.muse.training import masked_tokens, muse_loss, muse_mask
from maskgen.published.muse.transformer import MuseNetwork, MuseTransformer, official_name, without_text
from maskgen.sampling.critics import token_scores
from tests.parity.muse.lucidrains import GUIDED, UNGUIDED, conditions, network, recorded

STAGES = ("base", "superres")


def scene(stage: str) -> tuple[MuseNetwork, dict[str, Tensor], Cond, Tensor | None]:
    """Model, recordings, conditions, and features of the step before where the model reads them."""
    io, _ = recorded(f"muse_{stage}")
    model = network(f"muse_{stage}")
    previous = io.get(f"{stage}/self_cond_embed") if model.config.self_conditioned else None
    return model, io, conditions(io, io.get(f"{stage}/conditioning_token_ids")), previous


@pytest.mark.parametrize("stage", STAGES)
@torch.no_grad()
def test_logits_with_and_without_text(stage: str) -> None:
    model, io, cond, previous = scene(stage)
    tokens, scale = io[f"{stage}/x"][..., None], recorded(f"muse_{stage}")[1]["cond_scale"]
    assert (tokens == model.vocab_size).any(), "the fixture masks tokens"
    features = model.features(tokens, cond, previous=previous)
    torch.testing.assert_close(features, io[f"{stage}/embed"], **UNGUIDED)
    wanted, weak = (model(tokens, half, None, previous) for half in (cond, without_text(cond)))
    torch.testing.assert_close(wanted[:, :, 0], io[f"{stage}/logits"], **UNGUIDED)
    torch.testing.assert_close(weak[:, :, 0], io[f"{stage}/logits_null"], **UNGUIDED)
    guided = wanted + (scale - 1) * (wanted - weak)
    torch.testing.assert_close(guided[:, :, 0], io[f"{stage}/logits_guided"], **GUIDED)


@torch.no_grad()
def test_self_conditioning_starts_from_nothing() -> None:
    model, io, cond, previous = scene("base")
    tokens = io["base/x"][..., None]
    logits = model(tokens, cond)
    torch.testing.assert_close(logits[:, :, 0], io["base/logits_no_self_cond"], **UNGUIDED)
    if previous is not None:
        assert torch.equal(logits, model(tokens, cond, None, torch.zeros_like(previous)))


@torch.no_grad()
def test_negative_text_as_the_original_meant_it() -> None:
    """Its own method raises a TypeError, which the fixture records."""
    model, io, cond, previous = scene("base")
    settings = recorded("muse_base")[1]
    assert settings["negative_prompt_call"].startswith("TypeError")
    tokens, scale = io["base/x"][..., None], settings["cond_scale"]
    wanted, weak = (model(tokens, half, None, previous) for half in (cond, Cond(context=io["negative_text_embeds"])))
    guided = weak + scale * (wanted - weak)
    torch.testing.assert_close(guided[:, :, 0], io["base/logits_negative_as_meant"], **GUIDED)


@torch.no_grad()
def test_every_block_is_the_official_one() -> None:
    model, io, cond, previous = scene("superres")
    prefix = "superres/block/"
    wanted = {key.removeprefix(prefix): tensor for key, tensor in io.items() if key.startswith(prefix)}
    if model.text_proj is None:
        assert torch.equal(wanted.pop("text_embed_proj", io["text_embeds"]), io["text_embeds"])
    ours = {official_name(f"{name}.").removesuffix("."): module for name, module in model.named_modules()}
    ours["transformer_blocks"] = model.norm  # theirs ends with it
    got: dict[str, Tensor] = {}
    for name in wanted:
        ours[name].register_forward_hook(lambda module, inputs, output, name=name: got.update({name: output}))
    model.features(io["superres/x"][..., None], cond, previous=previous)
    assert got.keys() == wanted.keys()
    for name, reference in wanted.items():
        part = got[name][: reference.shape[0], : reference.shape[1]]  # large ones are stored in part
        torch.testing.assert_close(part, reference, **UNGUIDED, msg=lambda text, name=name: f"{name}: {text}")


@torch.no_grad()
def test_critic_scores() -> None:
    io, _ = recorded("muse_base")
    critic, tokens = network("muse_critic"), io["critic/x"][..., None]
    scores = token_scores(critic(tokens, conditions(io)), tokens)  # log-odds that the token is real; theirs: wrong
    torch.testing.assert_close(-scores, io["critic/scores"], **UNGUIDED)


@pytest.mark.parametrize("stage", STAGES)
@torch.no_grad()
def test_training_masks_and_loss(stage: str) -> None:
    model, io, _, _ = scene(stage)
    assert isinstance(model, MuseTransformer)
    key = f"train/{stage}"
    tokens, mask = io[f"{key}/ids"][..., None], muse_mask(io[f"{key}/u_time"], io[f"{key}/u_perm"])
    assert torch.equal(masked_tokens(tokens, mask, model.vocab_size)[..., 0], io[f"{key}/x"])
    assert torch.equal(torch.where(mask, tokens[..., 0], -1), io[f"{key}/labels"])
    cond = conditions(io, io.get(f"{stage}/conditioning_token_ids"))
    previous = io.get(f"{key}/self_cond_embed")
    if previous is not None:
        torch.testing.assert_close(model.features(io[f"{key}/x"][..., None], cond), previous, **UNGUIDED)
    dropped = without_text(cond, io[f"{key}/u_drop"][:, 0] >= 1 - 0.5)
    loss, _ = muse_loss(model, tokens, dropped, mask, mask_id=model.vocab_size, previous=previous)
    torch.testing.assert_close(loss, io[f"{key}/loss"], atol=1e-5, rtol=0.0)
