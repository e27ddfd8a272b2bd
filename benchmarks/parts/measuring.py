"""What every benchmark measures with: wall time, processor time, FLOPs, the best matrix product, the machine."""

import datetime
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

__all__ = ["count_flops", "machine", "matmul_peak", "processor_seconds", "seconds", "sustained_matmul"]


def count_flops(model: torch.nn.Module, *arguments: Any) -> int:
    """Multiply-adds of one call, counted as two; attention written out, for the counter does not know every fused kernel."""
    for module in model.modules():
        if hasattr(module, "backend"):
            module.backend = "eager"
    with FlopCounterMode(display=False) as counter:
        model(*arguments)
    for module in model.modules():
        if hasattr(module, "backend"):
            module.backend = "sdpa"
    return counter.get_total_flops()


def processor_seconds(work: Callable[[], Any], device: str) -> float:
    """On the CPU, processor time over the threads: what the work takes on cores that nobody shares; else wall time."""
    used = time.process_time()
    wall = seconds(work, device)
    return (time.process_time() - used) / torch.get_num_threads() if device == "cpu" else wall


def sustained_matmul(device: str) -> float:
    """FLOP/s of square float32 products of size 2,048, the peers' yardstick, under the settings in force.

    On the CPU by processor time over the threads, for half a second at least: what the cores give while they run us.
    """
    a = torch.randn(2048, 2048, device=device)
    torch.mm(a, a)
    count = 30 if device == "cpu" else 200
    return count * 2 * 2048**3 / processor_seconds(lambda: [torch.mm(a, a) for _ in range(count)], device)


def matmul_peak(device: str) -> float:
    """Best float32 matrix product of this machine in FLOP/s by the clock, over sizes, under the settings in force."""
    best = 0.0
    for size in (1024, 2048, 4096):
        a, b = torch.randn(size, size, device=device), torch.randn(size, size, device=device)
        torch.mm(a, b)
        for _ in range(4):
            best = max(best, 2 * size**3 / seconds(lambda: torch.mm(a, b), device))  # noqa: B023
            linear = seconds(lambda: torch.nn.functional.linear(a, b), device)  # noqa: B023
            best = max(best, 2 * size**3 / linear)
    return best


def seconds(work: Callable[[], Any], device: str) -> float:
    """Wall time of a call, the device's work included."""
    if device == "cuda":
        torch.cuda.synchronize()
    begun = time.perf_counter()
    work()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - begun


def machine() -> dict[str, Any]:
    """What was measured on, and when."""
    model = next((line for line in cpu_info() if line.startswith("model name")), "").partition(":")[2].strip()
    return {
        "date": datetime.date.today().isoformat(),
        "cpu": model or platform.processor(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def cpu_info() -> list[str]:
    """Lines of the kernel's description of the processor; none where there is no such file."""
    path = Path("/proc/cpuinfo")
    return path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
