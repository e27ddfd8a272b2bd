"""Linear layers with the bias inside oneDNN's product: torch's numbers and gradients."""

import pytest
import torch
from torch.nn import functional as F

from maskgen.precision import fast_matmul, linear

CASES = [((3, 7), 5), ((2, 4, 6), 9), ((1, 1), 1), ((2, 3, 2, 8), 16)]  # of the input, outputs


def drawn(shape: tuple[int, ...], outputs: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(outputs)
    sizes = [shape, (outputs, shape[-1]), (outputs,)]
    return [torch.randn(size, generator=generator).requires_grad_() for size in sizes]


@pytest.mark.parametrize("frozen", [None, 0, 1, 2])
@pytest.mark.parametrize(("shape", "outputs"), CASES)
def test_values_and_gradients(shape: tuple[int, ...], outputs: int, frozen: int | None) -> None:
    plain, fast = drawn(shape, outputs), drawn(shape, outputs)
    if frozen is not None:
        plain[frozen].requires_grad_(False)
        fast[frozen].requires_grad_(False)
    expected = F.linear(*plain)
    weight = torch.linspace(-1, 1, expected.numel()).view_as(expected)
    (expected * weight).sum().backward()
    with fast_matmul():
        found = linear(*fast)
        (found * weight).sum().backward()
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)
    for mine, theirs in zip(fast, plain, strict=True):
        assert (mine.grad is None) == (theirs.grad is None)
        if theirs.grad is not None:
            torch.testing.assert_close(mine.grad, theirs.grad, atol=1e-5, rtol=1e-5)


def test_gradients_of_gradients() -> None:
    """A gradient penalty differentiates the backward pass."""
    norms = []
    for compute in (F.linear, linear):
        x, weight, bias = drawn((4, 6), 3)
        with fast_matmul():
            (grad,) = torch.autograd.grad(compute(x, weight, bias).square().sum(), x, create_graph=True)
            grad.square().sum().backward()
        assert weight.grad is not None
        assert bias.grad is not None
        norms.append((weight.grad, bias.grad))
    for mine, theirs in zip(*reversed(norms), strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-4, rtol=1e-5)


def test_expanded_gradients_and_an_empty_batch() -> None:
    with fast_matmul():
        x, weight, bias = drawn((4, 6), 3)
        linear(x, weight, bias).sum().backward()  # the gradient that arrives has no strides
        assert bias.grad is not None
        torch.testing.assert_close(bias.grad, torch.full((3,), 4.0))
        x, weight, bias = drawn((0, 6), 3)
        linear(x, weight, bias).sum().backward()
        assert weight.grad is not None
        torch.testing.assert_close(weight.grad, torch.zeros(3, 6))
