"""float32 matrix products on the fast CPU path.

torch sends float32 products to MKL; oneDNN is up to twice as fast on AMD CPUs and is what
``torch.set_float32_matmul_precision("medium")`` selects. On CPUs with AMX that setting really computes in bfloat16, so
a small probe decides: it is used only where its error is that of float32.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import cache

import torch

__all__ = ["fast_matmul"]


@contextlib.contextmanager
def fast_matmul(device: torch.device | str = "cpu") -> Iterator[None]:
    """Use oneDNN's float32 products inside the block where they are exact; the setting is restored after it.

    Args:
        device: where the work runs; anything but the CPU is left alone.
    """
    before = torch.get_float32_matmul_precision()
    if torch.device(device).type != "cpu" or before != "highest" or not _medium_is_float32():
        yield
        return
    torch.set_float32_matmul_precision("medium")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


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
