"""What the comparisons measure besides time: FLOPs without computing anything, peak memory, the machine's free memory."""

import contextlib
import ctypes
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from parts.measuring import sustained_matmul
from torch.utils.flop_counter import FlopCounterMode

__all__ = [
    "Peak",
    "best_matmul",
    "count_units",
    "counted",
    "free_memory",
    "module_bytes",
    "peak_memory",
    "spread",
    "square_grid",
]

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def counted(work: Callable[[], Any]) -> int:
    """FLOPs of a call, a multiply-add as two; on the meta device nothing is computed and attention is counted too."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        work()
    return int(counter.get_total_flops())


def count_units(run: Callable[[Sequence[int]], Any], units: int, *, quadratic: bool = False) -> int:
    """FLOPs of all units of a job.

    Args:
        run: does the units it is given.
        units: how many there are.
        quadratic: unit t costs a polynomial of degree two in t at most: then the first three are counted, and the rest
            follows exactly (Newton's forward differences), for a thousand forwards take minutes to count.
    """
    if not quadratic or units <= 3:
        return counted(lambda: run(range(units)))
    first, second, third = (counted(lambda: run([unit])) for unit in range(3))  # noqa: B023
    slope, bend = second - first, third - 2 * second + first
    return (
        units * first
        + slope * units * (units - 1) // 2
        + bend * units * (units - 1) * (units - 2) // 6  # three consecutive integers: always divisible
    )


def spread(units: int, count: int) -> list[int]:
    """``count`` of ``units`` units, evenly spread: the middles of as many equal stretches."""
    return [(2 * index + 1) * units // (2 * count) for index in range(count)]


def square_grid(tokens: int) -> tuple[int, int]:
    """The grid of that many tokens whose sides are nearest to each other, the longer one last."""
    side = next(side for side in range(int(tokens**0.5), 0, -1) if tokens % side == 0)
    return side, tokens // side


def module_bytes(module: torch.nn.Module) -> int:
    """Memory of parameters and buffers, each tensor once."""
    return sum({t.data_ptr(): t.nbytes for t in (*module.parameters(), *module.buffers())}.values())


def _half_matmul(device: str, dtype: torch.dtype) -> float:
    """FLOP/s of square products of size 8,192 in a half type on a GPU: the roofline of bf16 rows."""
    a = torch.randn(8192, 8192, device=device, dtype=dtype)
    torch.mm(a, a)
    begun, ended = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    begun.record()
    for _ in range(50):
        torch.mm(a, a)
    ended.record()
    torch.cuda.synchronize()
    return 50 * 2 * 8192**3 / (begun.elapsed_time(ended) / 1e3)


def best_matmul(device: str, dtype: torch.dtype) -> float:
    """FLOP/s of the machine's products in that type, under the settings in force."""
    return sustained_matmul(device) if dtype == torch.float32 else _half_matmul(device, dtype)


@dataclass
class Peak:
    """How much the block took at its worst beyond what was there before it.

    Attributes:
        bytes: None where the system does not tell.
    """

    bytes: int | None = None


@contextlib.contextmanager
def peak_memory(device: str) -> Iterator[Peak]:
    """Peak memory of the block over what was in use when it began.

    On the CPU: resident memory, whose high-water mark Linux resets on request. Memory that earlier work freed is given back
    first, for what the allocator still holds would hide what the block takes.
    """
    peak = Peak()
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        yield peak
        peak.bytes = torch.cuda.max_memory_allocated() - before
        return
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
    try:
        CLEAR.write_text("5", encoding="ascii")
        resident = _status("VmRSS")
    except OSError:
        resident = None
    yield peak
    if resident is not None and (highest := _status("VmHWM")) is not None:
        peak.bytes = max(0, highest - resident)


def free_memory(device: str) -> int | None:
    """Memory that can be taken without swapping; None where the system does not tell."""
    if device == "cuda":
        return torch.cuda.mem_get_info()[0]
    path = Path("/proc/meminfo")
    return _kilobytes(path, "MemAvailable")


def _status(name: str) -> int | None:
    return _kilobytes(STATUS, name)


def _kilobytes(path: Path, name: str) -> int | None:
    found = (
        re.search(rf"^{name}:\s+(\d+) kB", path.read_text(encoding="ascii"), re.MULTILINE) if path.is_file() else None
    )
    return int(found[1]) * 1024 if found else None
