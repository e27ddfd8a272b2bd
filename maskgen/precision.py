"""float32 on the fast CPU path.

torch sends float32 products to MKL; oneDNN is up to twice as fast on AMD CPUs and is what
``torch.set_float32_matmul_precision("medium")`` selects. On CPUs with AMX that setting really computes in bfloat16, so
a small probe decides: it is used only where its error is that of float32.

``linear`` adds the bias inside oneDNN's product (torch first copies the bias to every row of the result). At inference
``linear_gelu`` needs one exponential where torch's kernel takes a slow hyperbolic tangent.

torch's fused attention obeys the setting, too, but cuts its products into blocks too small for oneDNN: ``attention`` runs it
on MKL, which takes 2/3 of the time at 257 positions of 12 heads, and a sixth at 64 positions of 4 (backward likewise).
"""

import contextlib
import math
from collections.abc import Iterator
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_fast = False  # inside ``fast_matmul`` on the CPU

_medium = False  # inside it, where it has switched products to oneDNN


@contextlib.contextmanager
def fast_matmul(device: torch.device | str = "cpu") -> Iterator[None]:
    """Use oneDNN's float32 products inside the block where they are exact; the setting is restored after it.

    Args:
        device: where the work runs; anything but the CPU is left alone.
    """
    global _fast, _medium  # noqa: PLW0603  process-wide switches, as the setting they go with
    before, was = torch.get_float32_matmul_precision(), (_fast, _medium)
    # Already on: a block inside, or another thread's, must not give back what that one has to give back.
    if torch.device(device).type != "cpu" or before != "highest" or _fast:
        yield
        return
    _fast = _has_linear()
    if _medium_is_float32():
        torch.set_float32_matmul_precision("medium")
        _medium = True
    try:
        yield
    finally:
        _fast, _medium = was
        torch.set_float32_matmul_precision(before)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``torch.nn.functional.linear``; inside ``fast_matmul`` through oneDNN with the bias in the kernel.

    Args:
        x: ``[..., I]``.
        weight: ``[O, I]``.
        bias: ``[O]``.

    Returns:
        ``[..., O]``, equal to torch's within float32 rounding.
    """
    if not (_fast and _is_plain(x) and weight.dtype == x.dtype):
        return F.linear(x, weight, bias)
    if torch.is_grad_enabled():
        # Without a bias there is nothing to gain.
        return F.linear(x, weight) if bias is None else _BiasInside.apply(x, weight, bias)  # type: ignore[no-untyped-call]
    return _product(x, weight, bias)


def _product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    product: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return product


class _BiasInside(torch.autograd.Function):
    """``_product`` with the gradients of a linear layer."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _product(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        rows = grads[0].reshape(-1, weight.shape[0])
        of_x, of_weight, of_bias = ctx.needs_input_grad
        return (
            (rows @ weight).view(x.shape) if of_x else None,
            rows.t() @ x.reshape(-1, x.shape[-1]) if of_weight else None,
            rows.sum(0) if of_bias else None,
        )


def linear_float32(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``linear`` with a float32 result where the layers before run in a half type: logits are sums of many terms, and bf16
    has three digits.
    """
    if x.dtype in (torch.bfloat16, torch.float16):
        return F.linear(x.float(), weight.float(), None if bias is None else bias.float())
    return linear(x, weight, bias)


class Linear(nn.Linear):
    """``torch.nn.Linear`` computed by ``linear``."""

    def forward(self, input: Tensor) -> Tensor:
        """``[..., in_features]`` -> ``[..., out_features]``."""
        return linear(input, self.weight, self.bias)


def linear_gelu(layer: nn.Linear, x: Tensor) -> Tensor:
    """tanh-form GELU (Hendrycks and Gimpel 2016, arXiv 1606.08415) of a linear layer's output.

    (1 + tanh u) / 2 = sigmoid(2 u), so x sigmoid(2 sqrt(2 / pi) (x + 0.044715 x^3)) is the same function; errors against
    float64 are alike. Inside ``fast_matmul``, without gradients, it replaces the layer's output in place, some rows at a
    time: a second buffer of that size costs more in fresh memory pages than the arithmetic.

    Args:
        layer: gives ``[..., O]``.
        x: ``[..., I]``.

    Returns:
        ``[..., O]``.
    """
    hidden: Tensor = layer(x)
    if not _is_fast(hidden):
        return F.gelu(hidden, approximate="tanh")
    scale = 2 * math.sqrt(2 / math.pi)
    for rows in hidden.view(-1, hidden.shape[-1]).split(256):
        rows.mul_(torch.mul(rows, rows).mul_(0.044715 * scale).add_(scale).mul_(rows).sigmoid_())
    return hidden


def linear_swiglu(layer: nn.Linear, x: Tensor) -> Tensor:
    """SiLU of the first half of a linear layer's outputs times the second half (SwiGLU, Shazeer 2020, arXiv 2002.05202).

    Inside ``fast_matmul``, without gradients, the halves are two products, whose results are contiguous and can be
    overwritten.

    Args:
        layer: gives ``[..., 2 O]``, without bias.
        x: ``[..., I]``.

    Returns:
        ``[..., O]``.
    """
    if not _is_fast(x):
        gate, up = layer(x).chunk(2, dim=-1)
        return F.silu(gate) * up
    gate, up = (linear(x, half) for half in layer.weight.chunk(2))
    return F.silu(gate, inplace=True).mul_(up)


def attention(
    q: Tensor, k: Tensor, v: Tensor, *, dropout: float = 0.0, mask: Tensor | None = None, causal: bool = False
) -> Tensor:
    """Fused attention of torch, softmax(q k^T / sqrt(D) + mask) v; inside ``fast_matmul`` on the product that suits it.

    Args:
        q: queries ``[B, H, S, D]``; k and v: ``[B, H, S', D]``.
        k: keys.
        v: values.
        dropout: probability of dropping an attention weight.
        mask: ``[..., S, S']``, added to the logits; or bool, True where a key may be seen.
        causal: whether position s sees the positions up to s only.

    Returns:
        ``[B, H, S, D]``.
    """
    options: dict[str, Any] = {"attn_mask": mask, "is_causal": causal}
    # With dropout torch has no fused kernel for CPUs.
    if dropout or not (_medium and all(map(_is_plain, (q, k, v)))):
        return F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, **options)
    if torch.is_grad_enabled() and mask is None and _has_fused_attention() and q.numel() and k.numel():
        fused: Tensor = _FusedAttention.apply(q, k, v, causal)  # type: ignore[no-untyped-call]
        return fused
    with default_matmul():
        return F.scaled_dot_product_attention(q, k, v, **options)


class _FusedAttention(torch.autograd.Function):
    """The kernel that torch takes on CPUs, so that its backward pass does not use oneDNN either."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Tensor:
        with default_matmul():
            out, log_sums = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, causal)
        ctx.causal = causal
        ctx.save_for_backward(q, k, v, out, log_sums)
        result: Tensor = out
        return result

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        with default_matmul():
            found = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
                *grads, *ctx.saved_tensors, 0.0, ctx.causal
            )
        return (*found, None)


@contextlib.contextmanager
def default_matmul() -> Iterator[None]:
    """Torch's own choice of float32 product inside the block, and its plain layers, whatever is set around it."""
    global _fast, _medium  # noqa: PLW0603  see ``fast_matmul``
    before, was = torch.get_float32_matmul_precision(), (_fast, _medium)
    torch.set_float32_matmul_precision("highest")
    _fast = _medium = False
    try:
        yield
    finally:
        _fast, _medium = was
        torch.set_float32_matmul_precision(before)


@cache
def _has_fused_attention() -> bool:
    """Whether this build of torch has the kernel and its backward by these names, which are not public."""
    name = "_scaled_dot_product_flash_attention_for_cpu"
    return all(hasattr(torch.ops.aten, each) for each in (name, f"{name}_backward"))


def _is_fast(x: Tensor) -> bool:
    return _fast and _is_plain(x) and not torch.is_grad_enabled()


def _is_plain(x: Tensor) -> bool:
    """Whether it is computed with in float32 on the CPU, kernel by kernel."""
    if torch.compiler.is_compiling():  # compilers do not know oneDNN's operator by that name, and fuse by themselves
        return False
    return x.dtype == torch.float32 and x.device.type == "cpu" and not torch.is_autocast_enabled("cpu")


@cache
def _has_linear() -> bool:
    """Whether this build of torch has oneDNN's linear; it is torch's own operator, but not a public name."""
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


@cache
def _medium_is_float32() -> bool:
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(256, 256, generator=generator) for _ in range(2))
    exact = a.double() @ b.double()
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        error = ((a @ b).double() - exact).norm() / exact.norm()
    finally:
        torch.set_float32_matmul_precision(before)
    return bool(error < 1e-6)  # float32: about 2e-7; bfloat16: about 3e-3
