"""Fused attention on either product of the CPU: the same numbers and gradients, and the setting is put back."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import maskgen.precision as precision
from maskgen.precision import attention, fast_matmul

CASES = [(2, 3, 5, 7, 4), (1, 2, 33, 33, 16), (3, 1, 1, 9, 8)]  # B, H, S, S', D


@pytest.fixture
def on_onednn(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a CPU whose oneDNN products are float32, whatever this one has."""
    monkeypatch.setattr(precision, "_medium_is_float32", lambda: True)


def drawn(shape: tuple[int, ...], needs_grad: bool) -> list[Tensor]:
    generator = torch.Generator().manual_seed(sum(shape))
    batch, heads, asking, seen, width = shape
    sizes = [(batch, heads, rows, width) for rows in (asking, seen, seen)]
    return [torch.randn(size, generator=generator).requires_grad_(needs_grad) for size in sizes]


@pytest.mark.usefixtures("on_onednn")
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("shape", CASES)
def test_values_and_gradients(shape: tuple[int, ...], causal: bool) -> None:
    plain, fast = drawn(shape, True), drawn(shape, True)
    expected = F.scaled_dot_product_attention(*plain, is_causal=causal)
    weight = torch.linspace(-1, 1, expected.numel()).view_as(expected)
    (expected * weight).sum().backward()
    with fast_matmul():
        assert torch.get_float32_matmul_precision() == "medium"
        found = attention(*fast, causal=causal)
        (found * weight).sum().backward()
        assert torch.get_float32_matmul_precision() == "medium"
        with torch.no_grad():
            silent = attention(*fast, causal=causal)
    assert torch.get_float32_matmul_precision() == "highest"
    for result in (found, silent):
        torch.testing.assert_close(result, expected, atol=1e-6, rtol=1e-5)
    for mine, theirs in zip(fast, plain, strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, atol=1e-6, rtol=1e-5)


@pytest.mark.usefixtures("on_onednn")
def test_masks_and_dropout_and_nothing_at_all() -> None:
    q, k, v = drawn(CASES[0], True)
    mask = torch.randn(3, 5, 7, generator=torch.Generator().manual_seed(1)).requires_grad_()
    with fast_matmul():
        found = attention(q, k, v, mask=mask)
        found.sum().backward()
        assert mask.grad is not None
        torch.manual_seed(0)
        dropped = attention(q, k, v, dropout=0.5)
        torch.manual_seed(0)
        torch.testing.assert_close(dropped, F.scaled_dot_product_attention(q, k, v, dropout_p=0.5))
        assert attention(q[:0], k[:0], v[:0]).shape == (0, 3, 5, 4)
        with torch.autocast("cpu", torch.bfloat16):
            half = attention(q, k.bfloat16(), v.bfloat16())
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(found, F.scaled_dot_product_attention(q, k, v, attn_mask=mask))


@pytest.mark.usefixtures("on_onednn")
def test_the_product_is_the_default_one_inside(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    real = F.scaled_dot_product_attention

    def watched(*arguments: Tensor, **options: object) -> Tensor:
        seen.append(torch.get_float32_matmul_precision())
        found: Tensor = real(*arguments, **options)
        return found

    monkeypatch.setattr(F, "scaled_dot_product_attention", watched)
    q, k, v = drawn(CASES[1], False)
    attention(q, k, v)
    with fast_matmul(), torch.no_grad():
        attention(q, k, v)
    torch.set_float32_matmul_precision("high")  # a user's own choice is left alone
    try:
        with fast_matmul(), torch.no_grad():
            attention(q, k, v)
    finally:
        torch.set_float32_matmul_precision("highest")
    assert seen == ["highest", "highest", "high"]
