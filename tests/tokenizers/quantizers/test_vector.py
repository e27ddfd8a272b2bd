"""Quantizers: one contract for all kinds, closed forms for each, codebook usage.

Shapes: B batch, D width, N positions, K codebooks, V codes.
"""

import copy
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from maskgen.tokenizers.quantizers.usage import codebook_usage
from maskgen.tokenizers.quantizers.vector import QuantizerConfig, build_quantizer, straight_through

CASES = {
    "vq": QuantizerConfig(codebook_size=12, dim=4),
    "vq-argmax": QuantizerConfig(codebook_size=12, dim=4, entropy_loss="argmax"),
    "fsq": QuantizerConfig(kind="fsq", levels=(3, 4, 5), dim=4),
    "fsq-own-width": QuantizerConfig(kind="fsq", levels=(3, 4, 5, 3), dim=4, codebook_size=180),
    "lfq": QuantizerConfig(kind="lfq", codebook_size=8, dim=4),
    "lfq-own-width": QuantizerConfig(kind="lfq", codebook_size=16, dim=4),
    "rvq": QuantizerConfig(kind="rvq", codebook_size=12, dim=4, num_quantizers=3),
}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("axes", [(7,), (3, 5), (2, 3, 4)], ids=["1d", "2d", "3d"])
@pytest.mark.parametrize("config", CASES.values(), ids=CASES)
def test_contract(config: QuantizerConfig, axes: tuple[int, ...], training: bool) -> None:
    quantizer = build_quantizer(config).train(training)
    latents = torch.randn(2, config.dim, *axes).requires_grad_(True)
    state = torch.get_rng_state()
    before = {name: value.clone() for name, value in quantizer.state_dict().items()}
    out = quantizer(latents)
    N = math.prod(axes)
    assert out.codes.shape == (2, N, quantizer.num_codebooks)
    assert out.codes.dtype == torch.long
    assert 0 <= out.codes.min() <= out.codes.max() < quantizer.vocab_size
    assert torch.equal(out.codes, quantizer.encode(latents))
    torch.testing.assert_close(out.latents, quantizer.lookup(out.codes, axes), atol=1e-5, rtol=1e-5)
    # Codes of one item, positions in raster order: item 1 alone, its axes flattened, gives the same codes.
    assert torch.equal(quantizer.encode(latents[1:].flatten(2)), out.codes[1:])
    assert out.loss.shape == ()
    torch.testing.assert_close(out.loss.detach(), torch.tensor([*out.terms.values(), 0.0]).sum())
    assert not any(term.requires_grad for term in out.terms.values())
    (out.latents.square().sum() + out.loss).backward()
    assert latents.grad is not None
    assert latents.grad.abs().sum() > 0
    # Learning is the optimizer's business: forward samples nothing and moves no state, in training either.
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(before[name], value) for name, value in quantizer.state_dict().items())


@pytest.mark.parametrize("config", CASES.values(), ids=CASES)
def test_every_parameter_learns(config: QuantizerConfig) -> None:
    quantizer = build_quantizer(config)
    out = quantizer(torch.randn(2, config.dim, 5, 5, requires_grad=True))
    (out.latents.square().sum() + out.loss).backward()
    assert all(weight.grad is not None for weight in quantizer.parameters())


@pytest.mark.parametrize("config", CASES.values(), ids=CASES)
def test_saved_and_copied(config: QuantizerConfig, tmp_path: Path) -> None:
    quantizer = build_quantizer(config)
    latents = torch.randn(2, config.dim, 9)
    quantizer(latents)
    if quantizer.state_dict():
        save_file(quantizer.state_dict(), tmp_path / "weights.safetensors")
    again = build_quantizer(config)
    again.load_state_dict(load_file(tmp_path / "weights.safetensors") if quantizer.state_dict() else {})
    for other in (again, copy.deepcopy(quantizer)):
        assert torch.equal(other.encode(latents), quantizer.encode(latents))


@pytest.mark.parametrize("config", CASES.values(), ids=CASES)
def test_float32_under_autocast_and_dtype_kept(config: QuantizerConfig) -> None:
    quantizer = build_quantizer(config)
    latents = torch.randn(2, config.dim, 6, dtype=torch.bfloat16)
    plain = quantizer.encode(latents)
    with torch.autocast("cpu", torch.bfloat16):
        out = quantizer(latents)
        assert torch.equal(quantizer.encode(latents), plain)
    assert out.latents.dtype == torch.bfloat16
    assert out.loss.dtype == torch.float32
    assert quantizer.lookup(plain, (6,)).dtype == torch.float32


@pytest.mark.parametrize("config", CASES.values(), ids=CASES)
def test_refuses_other_shapes(config: QuantizerConfig) -> None:
    quantizer = build_quantizer(config)
    with pytest.raises(ValueError, match=r"latents: got shape \(2, 5, 3\), expected \[B, 4, \.\.\.\]"):
        quantizer(torch.zeros(2, 5, 3))
    with pytest.raises(ValueError, match=r"latents: got shape \(2, 4\)"):
        quantizer.encode(torch.zeros(2, 4))
    K = quantizer.num_codebooks
    with pytest.raises(ValueError, match=rf"codes: got shape \(2, 6, {K}\), expected \(2, 5, {K}\) for axes"):
        quantizer.lookup(torch.zeros(2, 6, K, dtype=torch.long), (5,))


@given(st.integers(0, 10_000))
def test_vq_takes_the_nearest_row(seed: int) -> None:
    random = torch.Generator().manual_seed(seed)
    quantizer = build_quantizer(CASES["vq"])
    latents = torch.randn(1, 4, 9, generator=random) * 0.3
    rows = latents[0].t()
    distances = (rows[:, None] - quantizer.codebook.detach()).square().sum(-1)  # no expansion: the slow, plain form
    codes = quantizer.encode(latents)[0, :, 0]
    torch.testing.assert_close(distances.gather(1, codes[:, None])[:, 0], distances.min(dim=1).values)


def test_vq_takes_the_first_of_equal_rows() -> None:
    quantizer = build_quantizer(CASES["vq"])
    torch.nn.init.zeros_(quantizer.codebook)
    assert quantizer.encode(torch.randn(1, 4, 5)).eq(0).all()


def test_vq_starts_in_the_official_range() -> None:
    codebook = build_quantizer(QuantizerConfig(codebook_size=300, dim=50)).codebook
    assert 0.099 < codebook.abs().max() <= 0.1  # sqrt(3 / 300)


def test_vq_loss_without_the_entropy() -> None:
    config = QuantizerConfig(codebook_size=2, dim=1, commitment_weight=0.5, entropy_weight=0)
    quantizer = build_quantizer(config)
    quantizer.load_state_dict({"codebook": torch.tensor([[0.0], [1.0]])})
    out = quantizer(torch.tensor([[[0.25, 0.5 + 0.25]]]))
    assert set(out.terms) == {"q_latent", "e_latent"}
    assert out.codes.flatten().tolist() == [0, 1]
    torch.testing.assert_close(out.loss.detach(), torch.tensor(1.5 * 0.0625))


def test_straight_through() -> None:
    x = torch.randn(3, requires_grad=True)
    target = torch.randn(3)
    out = straight_through(x, target)
    torch.testing.assert_close(out.detach(), target)
    (gradient,) = torch.autograd.grad((out * target).sum(), x)
    assert torch.equal(gradient, target)


def test_fsq_has_every_code() -> None:
    quantizer = build_quantizer(CASES["fsq-own-width"])
    assert quantizer.vocab_size == 180
    assert not list(quantizer.parameters())
    codes = torch.arange(180).reshape(1, 180, 1)
    vectors = quantizer.lookup(codes, (180,))
    assert len(vectors[0].t().unique(dim=0)) == 180
    # Level values sit on the grid that forward rounds to; the bound is a tanh, so its inverse brings the codes back.
    assert vectors.abs().max() <= 1
    with_loss = quantizer(torch.randn(1, 4, 3))
    assert with_loss.loss == 0
    assert with_loss.terms == {}


def test_lfq_is_the_sign() -> None:
    quantizer = build_quantizer(CASES["lfq-own-width"])
    latents = torch.randn(2, 4, 6)
    codes = quantizer.encode(latents)
    assert torch.equal(quantizer.lookup(codes, (6,)), torch.where(latents > 0, 1.0, -1.0))
    assert torch.equal(quantizer(quantizer.lookup(codes, (6,))).codes, codes)
    assert not quantizer.train().inner.training


def test_rvq_adds_up_what_is_left_over() -> None:
    quantizer = build_quantizer(CASES["rvq"])
    latents = torch.randn(4, 4, 30) * 0.3
    codes = quantizer.encode(latents)
    books: list[Tensor] = [layer.codebook for layer in quantizer.inner.layers]
    partial = [sum(books[k][codes[..., k]] for k in range(depth)) for depth in (1, 2, 3)]
    torch.testing.assert_close(quantizer.lookup(codes, (30,)), partial[-1].transpose(1, 2))
    rows = latents.transpose(1, 2)
    # Each book quantizes what the sum of the ones before it left over.
    for k, part in enumerate([torch.zeros_like(rows), *partial[:2]]):
        distances = ((rows - part)[:, :, None] - books[k]).square().sum(-1)
        assert torch.equal(distances.argmin(-1), codes[..., k])


def test_loss_pulls_codes_and_latents_together() -> None:
    """A few steps of plain descent on the loss alone bring the quantization error down."""
    for kind in ("vq", "rvq"):
        torch.manual_seed(0)
        quantizer = build_quantizer(QuantizerConfig(kind=kind, codebook_size=8, dim=2, entropy_weight=0))
        latents = torch.randn(1, 2, 64)
        optimizer = torch.optim.Adam(quantizer.parameters(), lr=0.05)
        errors = []
        for _ in range(40):
            out = quantizer(latents)
            errors.append((out.latents.detach() - latents).square().mean().item())
            optimizer.zero_grad()
            out.loss.backward()
            optimizer.step()
        assert errors[-1] < 0.5 * errors[0], kind


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "vqq"}, "kind: got 'vqq', expected 'vq', 'fsq', 'lfq' or 'rvq'"),
        ({"codebook_size": 1}, "codebook_size: got 1, expected 2 or more"),
        ({"dim": 0}, "dim: got 0, expected 1 or more"),
        ({"commitment_weight": -1.0}, r"commitment_weight: got -1\.0, expected 0 or more"),
        ({"entropy_weight": -1.0}, "entropy_weight: got"),
        ({"entropy_temperature": 0.0}, r"entropy_temperature: got 0\.0, expected a positive number"),
        ({"entropy_loss": "soft"}, "entropy_loss: got 'soft'"),
        ({"kind": "lfq", "codebook_size": 12}, "codebook_size: got 12, expected a power of two"),
        ({"num_quantizers": 2}, "num_quantizers: got 2 for 'vq', expected 1; only 'rvq' has more"),
        ({"kind": "rvq", "num_quantizers": 0}, "num_quantizers: got 0, expected 1 or more"),
        ({"levels": (3, 3)}, r"levels: got \(3, 3\) for 'vq', expected none"),
        ({"kind": "fsq"}, r"levels: got \(\), expected 3 or more"),
        ({"kind": "fsq", "levels": (8, 2)}, r"levels: got \(8, 2\)"),
        ({"kind": "fsq", "levels": (8, 5), "codebook_size": 64}, "codebook_size: got 64, expected 40"),
    ],
)
def test_config_refuses(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        QuantizerConfig(**settings)


def test_usage_closed_forms() -> None:
    one = codebook_usage(torch.full((2, 5, 1), 3), 8)
    assert (one.share, one.perplexity) == (1 / 8, 1.0)
    even = codebook_usage(torch.arange(8).reshape(2, 4, 1), 8)
    assert even.share == 1
    assert even.perplexity == pytest.approx(8)
    both = codebook_usage(torch.stack([torch.zeros(1, 8, dtype=torch.long), torch.arange(8)[None]], dim=-1), 8)
    assert both.share == pytest.approx((1 / 8 + 1) / 2)
    assert both.perplexity == pytest.approx(4.5)


@given(st.lists(st.integers(0, 6), min_size=1, max_size=50))
def test_usage_bounds(ids: list[int]) -> None:
    usage = codebook_usage(torch.tensor(ids).reshape(1, -1, 1), 7)
    assert usage.share == pytest.approx(len(set(ids)) / 7)
    assert 1 - 1e-9 <= usage.perplexity <= len(set(ids)) + 1e-9


def test_usage_refuses() -> None:
    with pytest.raises(ValueError, match=r"got shape \(4,\), expected \[B, N, K\]"):
        codebook_usage(torch.zeros(4, dtype=torch.long), 8)
    with pytest.raises(ValueError, match="got ids from 0 to 8, expected 0 to 7"):
        codebook_usage(torch.tensor([[[0], [8]]]), 8)
