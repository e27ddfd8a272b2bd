"""Lucidrains' Muse transformers: conditions, conversion and its errors, files.

Shapes: B batch, N tokens, K codes.
"""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from maskgen.checkpoint import load_module, save_module
from maskgen.conditioning import Cond
from maskgen.models.base import MaskedTransformer
from maskgen.published.muse.transformer import (
    MuseConfig,
    MuseCritic,
    MuseTransformer,
    config_from,
    convert,
    without_text,
)
from maskgen.sampling.critics import check_critic, token_scores
from tests.core.published.muse.toys import BASE, CASES, conditions, model_of, published_state, tokens_of


@pytest.fixture(autouse=True)
def without_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


@pytest.mark.parametrize("name", CASES)
def test_conversion_keeps_every_number(name: str) -> None:
    config = CASES[name]
    model, state = model_of(config), published_state(model_of(config))
    unseen = {"self_conditioned": config.self_conditioned, "coarse_size": config.coarse_size}
    assert config_from(state, axes=(2, 3), **unseen) == config  # type: ignore[arg-type]
    assert ("text_embed_proj.weight" in state) == (config.text_width != config.width)
    again = MuseTransformer(config).eval()
    again.load_state_dict(convert(state, config))
    tokens, cond = tokens_of(config), conditions(config)
    assert torch.equal(again(tokens, cond), model(tokens, cond))


def test_a_whole_maskgit_holds_transformer_and_critic() -> None:
    """As its ``save`` writes it."""
    model, critic = model_of(BASE), model_of(BASE, MuseCritic)
    whole = {f"transformer.{name}": tensor for name, tensor in published_state(model).items()}
    whole |= {f"token_critic.{name}": tensor for name, tensor in published_state(critic).items()}
    whole |= {"vae.quantizer.mask": torch.ones(3)}
    for kind, part in ((MuseTransformer, model), (MuseCritic, critic)):
        config = config_from(whole, kind=kind, axes=(2, 3))
        assert config == BASE
        found = convert(whole, config, kind)
        assert found.keys() == part.state_dict().keys()
        assert all(torch.equal(found[name], tensor) for name, tensor in part.state_dict().items())


def test_what_does_not_fit_is_named() -> None:
    state = published_state(model_of(BASE))
    with pytest.raises(ValueError, match=r"missing to_logits.weight \(11, 12\).*unexpected to_logits.bias"):
        convert({n.replace("logits.weight", "logits.bias"): t for n, t in state.items()}, BASE)
    moved = {**state, "transformer_blocks.layers.1.2.3.beta": torch.ones(9)}
    with pytest.raises(ValueError, match=r"layers.1.2.3.beta: got numbers other than 0, expected the constant zeros"):
        convert(moved, BASE)
    with pytest.raises(ValueError, match=r"not the weights of a Muse transformer: 5 of 5 tensors"):
        config_from({"embed.weight": torch.ones(2, 2)})
    with pytest.raises(ValueError, match=r"pos_emb.weight: got 6 positions, which are no square grid; give its axes"):
        config_from(state)


@pytest.mark.parametrize("kind", [MuseTransformer, MuseCritic])
def test_files_keep_class_and_numbers(kind: type[MaskedTransformer], tmp_path: Path) -> None:
    model = model_of(BASE, kind)  # type: ignore[arg-type]
    save_module(model, tmp_path)
    assert f'"maskgen.published.muse.{kind.__name__}"' in (tmp_path / "config.json").read_text()
    tokens, cond = tokens_of(BASE, masked=False), conditions(BASE)
    assert torch.equal(load_module(tmp_path, MaskedTransformer)(tokens, cond), model(tokens, cond))


def test_padding_is_not_seen_with_or_without_a_mask() -> None:
    model, tokens, cond = model_of(BASE), tokens_of(BASE), conditions(BASE)
    assert cond.context is not None
    assert cond.context_mask is not None
    logits = model(tokens, cond)
    assert torch.equal(logits, model(tokens, Cond(context=cond.context)))
    noisy = torch.where(cond.context_mask[..., None], cond.context, 7.0)
    torch.testing.assert_close(logits, model(tokens, dataclasses.replace(cond, context=noisy)))
    assert not torch.allclose(logits[1:], model(tokens, Cond(context=noisy))[1:], atol=1e-3)
    torch.testing.assert_close(logits[1:2], model(tokens[1:2], cond.map(lambda tensor: tensor[1:2, :3])))


@pytest.mark.parametrize("name", ["base", "super-resolution"])
def test_no_text_leaves_what_is_not_text(name: str) -> None:
    config = CASES[name]
    model, tokens, cond = model_of(config), tokens_of(config), conditions(config)
    none = model(tokens, without_text(cond))
    torch.testing.assert_close(none, model(tokens, Cond(coarse=cond.coarse)))
    assert not torch.allclose(none, model(tokens, cond), atol=1e-3)
    mixed = model(tokens, without_text(cond, torch.tensor([True, False, True])))
    torch.testing.assert_close(mixed[1], model(tokens, cond)[1])
    torch.testing.assert_close(mixed[[0, 2]], none[[0, 2]])
    assert without_text(Cond()) == Cond()


def test_super_resolution_looks_at_the_small_picture() -> None:
    """The original trains and runs without it, in silence; here that is refused."""
    config = CASES["super-resolution"]
    model, tokens, cond = model_of(config), tokens_of(config), conditions(config)
    assert cond.coarse is not None
    other = dataclasses.replace(cond, coarse=(cond.coarse + 1) % 11)
    assert not torch.allclose(model(tokens, cond), model(tokens, other), atol=1e-3)
    turned = dataclasses.replace(cond, coarse=cond.coarse.flip(1))  # the published design: no positions
    torch.testing.assert_close(model(tokens, cond), model(tokens, turned))
    with pytest.raises(
        ValueError, match=r"cond.coarse: got none, expected the tokens of the small picture, \[3, 4, 1\]"
    ):
        model(tokens, dataclasses.replace(cond, coarse=None))


def test_a_critic_is_one_of_ours() -> None:
    critic, tokens, cond = model_of(BASE, MuseCritic), tokens_of(BASE, masked=False), conditions(BASE)
    check_critic(critic, model_of(BASE))
    logits = critic(tokens, cond)
    assert logits.shape == (3, 6, 1, 11)
    assert torch.equal(logits, logits[..., :1].expand_as(logits))
    wrong = critic.outputs(critic.features(tokens, cond))[..., 0]
    assert torch.equal(token_scores(logits, tokens), -wrong)


@pytest.mark.parametrize(
    ("cond", "message"),
    [
        (Cond(context=torch.ones(3, 4, 6)), r"cond.context: got \(3, 4, 6\), expected \[3, L, 5\]"),
        (Cond(context=torch.ones(2, 4, 5)), r"cond.context: got \(2, 4, 5\), expected \[3, L, 5\]"),
        (
            Cond(context_mask=torch.ones(3, 4)),
            r"cond.context_mask: got \(3, 4\) for no context, expected \[B, L\] of it",
        ),
        (Cond(coarse=torch.ones(3, 4, 1)), r"cond.coarse: got \(3, 4, 1\), expected none: this model takes none"),
        (Cond(labels=torch.ones(3)), r"cond.labels: MuseTransformer does not use it"),
        (Cond(pooled=torch.ones(3, 5)), r"cond.pooled: MuseTransformer does not use it"),
    ],
)
def test_wrong_conditions_are_refused(cond: Cond, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        model_of(BASE)(tokens_of(BASE), cond)


def test_other_mistakes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"tokens: got \(3, 5, 1\) on a grid None, expected \[B, 6, 1\] on \(2, 3\)"):
        model_of(BASE)(tokens_of(BASE)[:, :5], conditions(BASE))
    with pytest.raises(ValueError, match="previous: got features, but this model is not self_conditioned"):
        model_of(BASE)(tokens_of(BASE), conditions(BASE), None, torch.zeros(3, 6, 12))
    for changes, message in (
        ({"codebook_size": 1}, "codebook_size: got 1, expected 2 or more"),
        ({"heads": 0, "width": -1}, "got width -1, heads 0; expected positive sizes"),
        ({"coarse_size": -1}, r"got axes \(16, 16\), layers 8, coarse_size -1; expected"),
    ):
        with pytest.raises(ValueError, match=message):
            MuseConfig(**changes)


def test_the_contract_says_what_is_taken() -> None:
    model = model_of(CASES["super-resolution"])
    assert (model.context_width, model.pooled_width, model.coarse_size) == (5, 0, 4)
    assert (model.vocab_size, model.num_codebooks, model.num_classes) == (11, 1, 0)
