"""Both families of transformers: shapes, gradients, attention back-ends, batches, grids, labels, errors."""

import math

import pytest
import torch

from maskgen.conditioning import NO_LABEL, Cond
from maskgen.models.bert import BertConfig, BertTransformer
from maskgen.models.modern import ModernConfig, ModernTransformer
from maskgen.models.positions import apply_rotary, coordinates, rotary_angles
from tests.core.toys import FAMILIES, shaken, transformer


def batch(count: int = 3, places: int = 12, codebooks: int = 1, seed: int = 0) -> tuple[torch.Tensor, Cond]:
    """Random tokens, some of them hidden (id 11), and labels."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(12, (count, places, codebooks), generator=generator)
    return tokens, Cond(labels=torch.randint(4, (count,), generator=generator))


@pytest.mark.parametrize("family", FAMILIES)
def test_shapes(family: str) -> None:
    model = transformer(family)
    logits = model(*batch())
    assert logits.shape == (3, 12, 1, 11)
    assert logits.dtype == torch.float32
    assert (model.vocab_size, model.num_codebooks, model.num_classes, model.null_class) == (11, 1, 4, True)


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_reach_every_parameter(family: str) -> None:
    model = shaken(transformer(family)).train()
    tokens, cond = batch(8)
    tokens[0, 0], tokens[0, 1:] = 11, torch.arange(11)[:, None]
    assert cond.labels is not None
    cond.labels[:5] = torch.tensor([0, 1, 2, 3, NO_LABEL])
    model(tokens, cond).square().sum().backward()
    inert = []
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        if name.endswith("key.bias"):
            # It adds the same number to a query's whole row of scores, which the softmax takes out again.
            inert.append(name)
            assert parameter.grad.abs().max() < 1e-3, name
        else:
            assert parameter.grad.abs().max() > 1e-2, name
    assert len(inert) == (2 if family == "bert" else 0)


@pytest.mark.parametrize("family", FAMILIES)
def test_eager_attention_equals_fused_attention(family: str) -> None:
    fused, eager = shaken(transformer(family)), shaken(transformer(family, attention="eager"))
    assert all(torch.equal(a, b) for a, b in zip(fused.parameters(), eager.parameters(), strict=True))
    torch.testing.assert_close(fused(*batch()), eager(*batch()), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_items_of_a_batch_do_not_see_each_other(family: str) -> None:
    model = shaken(transformer(family))
    tokens, cond = batch()
    assert cond.labels is not None
    whole = model(tokens, cond)
    for i in range(3):
        alone = model(tokens[i : i + 1], Cond(labels=cond.labels[i : i + 1]))
        torch.testing.assert_close(alone[0], whole[i], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_places_are_told_apart_when_everything_is_hidden(family: str) -> None:
    model = shaken(transformer(family))
    logits = model(torch.full((1, 12, 1), 11), Cond(labels=torch.tensor([1])))[0, :, 0]
    gaps = torch.cdist(logits, logits) + torch.eye(12)
    assert gaps.min() > 0.05


@pytest.mark.parametrize("family", FAMILIES)
def test_every_token_sees_every_other(family: str) -> None:
    model = shaken(transformer(family))
    tokens, cond = batch(1)
    before = model(tokens, cond)
    for place in range(12):
        changed = tokens.clone()
        changed[0, place] = (tokens[0, place] + 1) % 12
        assert ((model(changed, cond) - before).abs().amax((0, 2, 3)) > 1e-4).all()


@pytest.mark.parametrize("family", FAMILIES)
def test_labels_matter_and_none_is_the_null_label(family: str) -> None:
    model = shaken(transformer(family))
    tokens, _ = batch()
    classes = [model(tokens, Cond(labels=torch.full((3,), label))) for label in (0, 1, 2, 3, NO_LABEL)]
    assert all((a - b).abs().max() > 1e-2 for i, a in enumerate(classes) for b in classes[:i])
    assert torch.equal(model(tokens, Cond()), classes[-1])


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_without_classes(family: str) -> None:
    changes = {"num_classes": 0, **({"null_class": False} if family == "bert" else {})}
    model = shaken(transformer(family, **changes))
    assert model(batch()[0], Cond()).shape == (3, 12, 1, 11)


@pytest.mark.parametrize("family", FAMILIES)
def test_dropout_is_for_training_only(family: str) -> None:
    model = shaken(transformer(family, dropout=0.5))
    tokens, cond = batch()
    assert torch.equal(model(tokens, cond), model(tokens, cond))
    assert not torch.equal(model.train()(tokens, cond), model(tokens, cond))


@pytest.mark.parametrize("codebooks", [1, 2, 4])
def test_codebooks(codebooks: int) -> None:
    model = shaken(transformer("modern", num_codebooks=codebooks))
    tokens, cond = batch(codebooks=codebooks)
    before = model(tokens, cond)
    assert before.shape == (3, 12, codebooks, 11)
    for k in range(codebooks):
        changed = tokens.clone()
        changed[:, 3, k] = (changed[:, 3, k] + 1) % 12
        assert (model(changed, cond) - before).abs().max() > 1e-3
    if codebooks > 1:  # codebooks have tables of their own
        assert not torch.allclose(model(tokens.flip(2), cond), before)


@pytest.mark.parametrize("axes", [(12,), (5, 3), (1, 1), (2, 3, 4), (7, 2)])
def test_modern_takes_any_grid(axes: tuple[int, ...]) -> None:
    model = shaken(transformer("modern"))
    count = math.prod(axes)
    tokens, cond = batch(places=count)
    logits = model(tokens, cond, axes)
    assert logits.shape == (3, count, 1, 11)
    if count > 12:
        assert not torch.allclose(model(tokens, cond, axes[::-1]), logits)


def test_modern_uses_the_trained_grid_by_default() -> None:
    model = shaken(transformer("modern"))
    tokens, cond = batch()
    assert torch.equal(model(tokens, cond), model(tokens, cond, (3, 4)))
    assert not torch.allclose(model(tokens, cond), model(tokens, cond, (4, 3)))


def test_modern_starts_at_knowing_nothing() -> None:
    assert (transformer("modern")(*batch()) == 0).all()


@pytest.mark.parametrize("axes", [(9,), (4, 5), (2, 3, 4)])
def test_rotary_products_depend_on_differences_of_coordinates_only(axes: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    q, k = (torch.randn(1, 1, 1, 14, generator=generator, dtype=torch.float64) for _ in range(2))
    coords = coordinates(axes)
    angles = rotary_angles(coords, 14, 50.0).double()
    turned_q, turned_k = (apply_rotary(x.expand(1, 1, len(coords), 14), angles.cos(), angles.sin()) for x in (q, k))
    scores = (turned_q @ turned_k.transpose(-1, -2))[0, 0]
    seen: dict[tuple[int, ...], float] = {}
    for i, a in enumerate(coords.tolist()):
        for j, b in enumerate(coords.tolist()):
            difference = tuple(x - y for x, y in zip(a, b, strict=True))
            assert float(scores[i, j]) == pytest.approx(seen.setdefault(difference, float(scores[i, j])), abs=1e-5)
    assert len({round(value, 4) for value in seen.values()}) > len(seen) * 0.9  # and every axis counts
    assert float(scores[0, 0]) == pytest.approx(float((q * k).sum()), abs=1e-9)


@pytest.mark.parametrize("own_places", [False, True])
def test_rotary_is_a_product_of_complex_numbers_and_has_its_gradients(own_places: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    qkv = torch.randn(2, 5, 3, 3, 8, generator=generator, dtype=torch.float64, requires_grad=True)
    x = qkv.permute(2, 0, 3, 1, 4)[1]  # a view, as in attention
    angles = torch.randn((2, 1, 5, 4) if own_places else (5, 4), generator=generator, dtype=torch.float64)
    cos, sin = angles.cos(), angles.sin()
    expected = torch.complex(x[..., :4], x[..., 4:]) * torch.polar(torch.ones_like(angles), angles)
    with torch.no_grad():
        silent = apply_rotary(x, cos, sin)
    for found in (apply_rotary(x, cos, sin), silent):
        torch.testing.assert_close(found, torch.cat((expected.real, expected.imag), dim=-1))
    assert torch.autograd.gradcheck(lambda x: apply_rotary(x, cos, sin), (x,))
    assert torch.autograd.gradgradcheck(lambda x: apply_rotary(x, cos, sin), (x,))
    half = apply_rotary(x.bfloat16(), cos.float(), sin.float())  # autocast: angles stay float32
    assert half.dtype == torch.float32


def test_coordinates_are_in_raster_order() -> None:
    assert coordinates((2, 3)).tolist() == [[0, 0], [0, 1], [0, 2], [1, 0], [1, 1], [1, 2]]
    angles = rotary_angles(coordinates((2, 3)), 10, 100.0)
    assert angles.shape == (6, 5)
    assert (angles[:, 4] == 0).all()  # five pairs, two axes: one pair is spare
    torch.testing.assert_close(angles[5, :4], torch.tensor([1.0, 0.1, 2.0, 0.2]))


def test_released_sizes() -> None:
    """The published ImageNet models, 256 and 512 pixels (specification, section 2)."""
    for axes, count in (((16, 16), 172_457_193), ((32, 32), 173_047_017)):
        with torch.device("meta"):
            model = BertTransformer(BertConfig(axes=axes))
        assert sum(parameter.numel() for parameter in model.parameters()) == count


def test_initial_weights_of_bert_are_the_official_ones() -> None:
    """A normal of std 0.02 cut at two sigma, which leaves 0.0176."""
    model = transformer("bert", width=256)
    for weight in (model.word_embedding.weight, model.blocks[0].query.weight, model.head.weight):
        assert weight.abs().max() <= 0.04
        assert weight.std().item() == pytest.approx(0.01759, rel=0.03)
    assert not model.head_bias.any()
    assert not model.blocks[1].expand.bias.any()


@pytest.mark.parametrize(
    ("tokens", "axes"), [((2, 11, 1), None), ((2, 12, 2), None), ((2, 12, 1), (4, 3)), ((2, 12), None)]
)
def test_bert_refuses_other_grids(tokens: tuple[int, ...], axes: tuple[int, ...] | None) -> None:
    with pytest.raises(
        ValueError, match=r"tokens: got .*, expected \[B, 12, 1\] on \(3, 4\); .*use maskgen.models.modern"
    ):
        transformer("bert")(torch.zeros(tokens, dtype=torch.long), Cond(), axes)


@pytest.mark.parametrize(
    ("tokens", "axes"), [((2, 11, 1), None), ((2, 12, 2), None), ((2, 12, 1), (4, 4)), ((2, 12), None)]
)
def test_modern_refuses_tokens_that_do_not_fit_the_grid(tokens: tuple[int, ...], axes: tuple[int, ...] | None) -> None:
    with pytest.raises(ValueError, match=r"tokens: got .*, expected \[B, 1[26], 1\] for the grid"):
        transformer("modern")(torch.zeros(tokens, dtype=torch.long), Cond(), axes)


def test_bert_without_a_null_class_needs_labels() -> None:
    with pytest.raises(ValueError, match="labels: got none, but this model has no null class"):
        transformer("bert", null_class=False)(batch()[0], Cond())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"width": 30, "heads": 4}, "width 30 must be a multiple of"),
        ({"vocab_size": 1}, "got vocab_size 1"),
        ({"num_classes": -1}, "num_classes -1"),
        ({"axes": (3, 0)}, r"axes \(3, 0\)"),
        ({"attention": "flash"}, "attention back-end: got 'flash', expected 'sdpa', 'xformers' or 'eager'"),
    ],
)
@pytest.mark.parametrize("kind", [BertConfig, ModernConfig])
def test_configs_are_checked(kind: type, change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kind(**change)


def test_modern_config_alone() -> None:
    with pytest.raises(ValueError, match="num_codebooks 0"):
        ModernConfig(num_codebooks=0)
    with pytest.raises(ValueError, match=r"heads of width 4 have too few rotary pairs for the 3 axes \(2, 3, 4\)"):
        ModernConfig(width=32, heads=8, axes=(2, 3, 4))
    with torch.device("meta"):
        assert ModernTransformer(ModernConfig(width=24, heads=2, layers=1)).num_codebooks == 1


@pytest.mark.parametrize("kind", [BertConfig, ModernConfig])
def test_xformers_without_cuda_says_so(kind: type, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="back-end 'xformers' needs a CUDA device and none was found; use 'sdpa'"):
        kind(attention="xformers")


def test_xformers_that_is_not_installed_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setitem(__import__("sys").modules, "xformers.ops", None)
    with pytest.raises(ImportError, match=r"pip install \"maskgen\[xformers\]\""):
        ModernConfig(attention="xformers")
