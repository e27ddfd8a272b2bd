"""How many operations a second a device could do: what a training's speed is measured against."""

from __future__ import annotations

import math
import time
from functools import cache

import torch

__all__ = ["peak_flops"]

# Dense peaks by the makers' data sheets, 10^12 a second: (bf16 or fp16, float32 as torch computes it by default).
# The first name that is part of the device's name counts, so longer ones come first.
_PEAKS: dict[str, tuple[float, float]] = {
    "H200": (989.0, 67.0),
    "H100 PCIe": (756.0, 51.0),
    "H100 NVL": (835.0, 60.0),
    "H100": (989.0, 67.0),
    "B200": (2250.0, 80.0),
    "A100": (312.0, 19.5),
    "A10G": (70.0, 31.2),
    "L40S": (362.0, 91.6),
    "L4": (121.0, 30.3),
    "RTX 4090": (165.2, 82.6),
    "RTX 3090": (71.0, 35.6),
    "V100": (125.0, 15.7),
    "T4": (65.0, 8.1),
}


@cache
def peak_flops(device: torch.device, precision: str) -> float:
    """Operations a second that the device could do at most.

    Args:
        device: where the training runs.
        precision: ``no``, ``bf16`` or ``fp16``.

    Returns:
        From the makers' data sheets where the name is known; else what a large matrix product reaches here.
    """
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        for known, (half, single) in _PEAKS.items():
            if known in name:
                return 1e12 * (single if precision == "no" else half)
    return _measured(device, {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision, torch.float32))


def _measured(device: torch.device, kind: torch.dtype) -> float:
    size, rounds = (8192, 10) if device.type == "cuda" else (1024, 3)
    a = b = torch.ones(size, size, device=device, dtype=kind)  # drawn numbers would disturb the training's
    best = math.inf
    for _ in range(rounds):
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        began = time.perf_counter()
        a @ b
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - began)
    return 2.0 * size**3 / best
