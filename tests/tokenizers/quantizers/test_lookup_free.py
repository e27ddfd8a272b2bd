"""Lookup-free quantization: ids, parts of ids, the losses and what they cost in memory.

Shapes: B batch, N positions, C codebooks, d bits, M tokens, V = 2^d codes.
"""

import itertools
import math
from typing import Any

import pytest
import torch
import vector_quantize_pytorch as other_library
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from maskgen.tokenizers.published.image.maskbit_codes import split_ids
from maskgen.tokenizers.quantizers.lookup_free import (
    LFQ,
    LFQConfig,
    bit_entropies,
    bits_to_ids,
    entropies,
    factor_ids,
    ids_to_codes,
    join_ids,
)


class Largest(TorchDispatchMode):
    """Elements of the largest tensor that anything made."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for made in out if isinstance(out, tuple | list) else (out,):
            if isinstance(made, Tensor):
                self.elements = max(self.elements, made.numel())
        return out


def table_entropies(tokens: Tensor, temperature: float, weights: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Both entropies by the definition, in float64, with the table of tokens x codes."""
    d = tokens.shape[1]
    codes = ids_to_codes(torch.arange(2**d), d).double()
    chances = (2 * tokens.double() @ codes.t() / temperature).softmax(-1)
    share = torch.full((len(tokens),), 1 / len(tokens)) if weights is None else weights / weights.sum()
    mean = (chances * share.double()[:, None]).sum(0)
    sample = torch.special.entr(chances).sum(-1) @ share.double()
    return sample, -(mean * (mean + 1e-5).log()).sum()


def test_the_first_channel_counts_least() -> None:
    lfq = LFQ(LFQConfig(bits=3))
    assert lfq.encode(torch.tensor([[[0.1], [-0.1], [-0.1]]])).item() == 1
    assert lfq.encode(torch.tensor([[[-0.1], [-0.1], [0.1]]])).item() == 4
    assert ids_to_codes(torch.tensor([4]), 3).tolist() == [[-1, -1, 1]]


def test_zero_counts_as_below() -> None:
    latents = torch.tensor([[[0.0], [-0.0], [1e-30]]])
    out = LFQ(LFQConfig(bits=3))(latents)
    assert out.ids.item() == 4
    assert out.latents.flatten().tolist() == [-1, -1, 1]


@given(st.integers(1, 12), st.integers(1, 3), st.integers(0, 2**31))
def test_ids_and_codes_are_inverse(bits: int, codebooks: int, seed: int) -> None:
    lfq = LFQ(LFQConfig(bits=bits, codebooks=codebooks))
    ids = torch.randint(2**bits, (2, 6, codebooks), generator=torch.Generator().manual_seed(seed))
    codes = lfq.lookup(ids, (2, 3))
    assert codes.shape == (2, bits * codebooks, 2, 3)
    assert torch.equal(codes.abs(), torch.ones_like(codes))
    assert torch.equal(lfq.encode(0.3 * codes), ids)
    assert torch.equal(bits_to_ids(ids_to_codes(ids, bits) > 0), ids)


@given(st.lists(st.integers(1, 20), min_size=1, max_size=3), st.integers(0, 2**31))
def test_parts_and_whole_are_inverse(sizes: list[int], seed: int) -> None:
    ids = torch.randint(2 ** sum(sizes), (3, 4), generator=torch.Generator().manual_seed(seed))
    parts = factor_ids(ids, sizes)
    assert all(int(part.max()) < 2**size for part, size in zip(parts, sizes, strict=True))
    assert torch.equal(join_ids(parts, sizes), ids)
    starts = [0, *itertools.accumulate(sizes)]
    for bit in (0, sum(sizes) - 1):  # the low bits are in the first part, the high ones in the last
        index = max(i for i, start in enumerate(starts[:-1]) if start <= bit)
        assert [int(part.item()) for part in factor_ids(torch.tensor([2**bit]), sizes)] == [
            2 ** (bit - starts[i]) if i == index else 0 for i in range(len(sizes))
        ]


def test_equal_parts_are_those_of_maskbit() -> None:
    ids = torch.arange(2**12)
    assert torch.equal(torch.stack(factor_ids(ids, (6, 6)), -1), split_ids(ids, bits=12, splits=2))


def test_reversed_bits_are_the_other_librarys_numbers() -> None:
    latents = torch.randn(2, 5, 3, 4)
    other = other_library.LFQ(codebook_size=32, dim=5).eval()
    with torch.no_grad():
        codes, theirs, _ = other(latents)
    out = LFQ(LFQConfig(bits=5)).eval()(latents)
    assert torch.equal(out.latents.sign(), codes)
    bits = (1,) * 5
    assert torch.equal(join_ids(factor_ids(theirs, bits)[::-1], bits), out.ids.reshape(2, 3, 4))


@pytest.mark.parametrize("d", [1, 2, 5, 8])
@pytest.mark.parametrize("weighted", [False, True])
def test_entropies_by_bits_are_those_of_the_table(d: int, weighted: bool) -> None:
    tokens = (0.02 * torch.randn(7, d)).requires_grad_()
    weights = torch.tensor([1.0, 0, 2, 1, 0, 0.5, 1]) if weighted else None
    found = bit_entropies(tokens, temperature=0.03, weights=weights)
    expected = table_entropies(tokens, 0.03, weights)
    for got, truth in zip((found.sample, found.batch), expected, strict=True):
        torch.testing.assert_close(got.double(), truth, atol=2e-6, rtol=1e-6)
        ours, theirs = (torch.autograd.grad(loss, tokens, retain_graph=True)[0] for loss in (got, truth))
        torch.testing.assert_close(ours, theirs, atol=1e-4 * float(theirs.abs().max()), rtol=0)


def test_entropies_of_sure_bits_have_exact_gradients() -> None:
    """1 - p would be rounding where a bit is nearly sure, and most of the gradient with it."""
    tokens = torch.linspace(-0.2, 0.2, 41)[:, None].requires_grad_()
    (ours,) = torch.autograd.grad(bit_entropies(tokens, temperature=0.01).sample, tokens)
    exact = tokens.detach().double().requires_grad_()
    logits = 400 * exact
    entropy = -logits.sigmoid() * torch.nn.functional.logsigmoid(logits)
    entropy = entropy - (-logits).sigmoid() * torch.nn.functional.logsigmoid(-logits)
    (theirs,) = torch.autograd.grad(entropy.mean(), exact)
    torch.testing.assert_close(ours.double(), theirs, atol=1e-7, rtol=1e-4)


def test_general_entropies_are_those_of_the_codes() -> None:
    tokens = 0.02 * torch.randn(9, 4)
    codes = ids_to_codes(torch.arange(16), 4)
    general, bits = entropies(2 * tokens @ codes.t(), temperature=0.01), bit_entropies(tokens, temperature=0.01)
    torch.testing.assert_close(general.sample, bits.sample)
    torch.testing.assert_close(general.batch, bits.batch)


def test_even_use_has_the_entropy_of_the_codebook() -> None:
    tokens = ids_to_codes(torch.arange(16), 4)
    found = bit_entropies(tokens, temperature=0.01)
    assert float(found.sample) == pytest.approx(0, abs=1e-6)
    assert float(found.batch) == pytest.approx(math.log(16), abs=1e-3)


def test_no_table_of_tokens_and_codes_is_built() -> None:
    lfq = LFQ(LFQConfig())
    latents = torch.randn(2, 18, 4, 4, 4).requires_grad_()
    with Largest() as trained:
        out = lfq(latents)
        out.entropy.backward()
    assert trained.elements == 2**18  # the mean distribution; a table would be 128 times that
    with Largest() as encoded:
        lfq.encode(latents)
    assert encoded.elements == latents.numel()


def test_masked_places_do_not_count() -> None:
    lfq = LFQ(LFQConfig(bits=4, codebooks=2))
    latents = 0.02 * torch.randn(2, 8, 6)
    mask = torch.tensor([[True, False, True, True, False, True], [False, True, True, False, True, True]])
    masked = lfq(latents, mask)
    kept = lfq(latents.mT[mask].mT[None])
    for name in ("sample_entropy", "batch_entropy", "entropy", "commitment"):
        torch.testing.assert_close(getattr(masked, name), getattr(kept, name))
    assert not torch.isclose(masked.entropy, lfq(latents).entropy)


def test_gradients_pass_through() -> None:
    lfq = LFQ(LFQConfig(bits=4, sample_weight=0.5, batch_weight=2.0))
    latents = (0.05 * torch.randn(2, 4, 3, 2)).requires_grad_()
    out = lfq(latents)
    pull = torch.randn_like(latents)
    (gradient,) = torch.autograd.grad((out.latents * pull).sum(), latents, retain_graph=True)
    assert torch.equal(gradient, pull)
    torch.testing.assert_close(out.entropy, 0.5 * out.sample_entropy - 2.0 * out.batch_entropy)
    torch.testing.assert_close(out.commitment, (latents - latents.sign()).square().mean())


def test_half_precision_gives_the_same_ids() -> None:
    lfq = LFQ(LFQConfig(bits=4))
    latents = torch.randn(1, 4, 5).to(torch.bfloat16)
    out = lfq(latents)
    assert out.latents.dtype == torch.bfloat16
    assert out.entropy.dtype == torch.float32
    assert torch.equal(out.ids, lfq(latents.float()).ids)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bits": 0}, "bits, codebooks: got 0 and 1, expected 1 to 24 bits"),
        ({"bits": 25}, "more bits go into more codebooks"),
        ({"codebooks": 0}, "got 18 and 0"),
        ({"temperature": 0.0}, "got 0.0, 1.0, 1.0, expected a positive temperature"),
        ({"batch_weight": -1.0}, "weights of 0 or more"),
    ],
)
def test_config_refuses(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LFQConfig(**changes)


def test_shapes_that_do_not_fit_are_refused() -> None:
    lfq = LFQ(LFQConfig(bits=3))
    with pytest.raises(ValueError, match=r"latents: got shape \(2, 4, 5\), expected \[B, 3, \.\.\.\]"):
        lfq(torch.zeros(2, 4, 5))
    with pytest.raises(ValueError, match=r"latents: got shape \(2, 3\)"):
        lfq.encode(torch.zeros(2, 3))
    with pytest.raises(ValueError, match=r"mask: got shape \(2, 4\), expected \(2, 5\), one a position"):
        lfq(torch.zeros(2, 3, 5), torch.ones(2, 4, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"ids: got shape \(1, 4\), expected \(1, 4, 1\) for axes \(2, 2\)"):
        lfq.lookup(torch.zeros(1, 4, dtype=torch.long), (2, 2))
    with pytest.raises(ValueError, match=r"mask: got shape \(3,\), expected \(2,\)"):
        entropies(torch.zeros(2, 4), temperature=1.0, mask=torch.ones(3, dtype=torch.bool))
    with pytest.raises(ValueError, match="temperature: got 0, expected a positive number"):
        entropies(torch.zeros(2, 4), temperature=0)


def test_ids_that_do_not_fit_are_refused() -> None:
    ids = torch.tensor([3, 8])
    with pytest.raises(ValueError, match=r"ids: got 3 to 8, expected 0 to 7 \(3 bits\)"):
        ids_to_codes(ids, 3)
    with pytest.raises(ValueError, match="ids: got -1 to 0"):
        ids_to_codes(torch.tensor([-1, 0]), 3)
    with pytest.raises(TypeError, match=r"ids: got torch\.int32, expected torch\.int64"):
        factor_ids(ids.int(), (2, 2))
    with pytest.raises(ValueError, match="got 3 to 8, expected 0 to 3"):
        join_ids((torch.tensor([0, 0]), ids), (2, 2))
    with pytest.raises(ValueError, match=r"parts: got 1, expected 2, one for each of the sizes \(2, 2\)"):
        join_ids((ids,), (2, 2))
    with pytest.raises(ValueError, match=r"sizes: got \(0, 4\), expected bits of each part"):
        factor_ids(ids, (0, 4))
    with pytest.raises(ValueError, match=r"sizes: got \(40, 40\)"):
        factor_ids(ids, (40, 40))
