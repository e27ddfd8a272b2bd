"""How long the distances of an evaluation take, and how much memory: 50,000 feature vectors of width 2,048 a side.

Random vectors with a falling spectrum, as features of Inception have it. What must be reached on 2 cores: the Frechet
distance, both sides' statistics included, in 60 s and 4 GB. ``python benchmarks/metrics_speed.py --help``.
"""

import argparse
import json
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from parts.measuring import machine
from torch import Tensor

from maskgen.tasks.evaluation.metrics.frechet import (
    Gaussian,
    Moments,
    frechet_distance,
    frechet_infinity,
    kernel_distance,
)
from maskgen.tasks.evaluation.metrics.manifold import overlap

MEASURES = ("fid", "kid", "prdc", "infinity")


def main() -> None:
    """Measure and print; write JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=50_000, help="vectors of each side")
    parser.add_argument("--width", type=int, default=2048, help="numbers of a vector")
    parser.add_argument("--most", type=int, default=10_000, help="vectors of each side for prdc")
    parser.add_argument("--measures", nargs="*", default=["fid"], choices=MEASURES)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, help="write the numbers here")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    made, real = (features(arguments.count, arguments.width, seed) for seed in (0, 1))
    print(f"{arguments.count} x {arguments.width}, {arguments.threads} threads, {memory_gb():.2f} GB hold the vectors")
    work: dict[str, Callable[[], Any]] = {
        "fid": lambda: frechet_distance(*[gaussian(side) for side in (made, real)]),
        "kid": lambda: kernel_distance(made, real).value,
        "prdc": lambda: float(overlap(made[: arguments.most], real[: arguments.most], (3, 5))[0].precise.mean()),
        "infinity": lambda: frechet_infinity(made, gaussian(real)).value,
    }
    rows = []
    for name in arguments.measures:
        begun, used = time.perf_counter(), time.process_time()
        value = float(work[name]())
        row = {
            "measure": name,
            "value": value,
            "seconds": round(time.perf_counter() - begun, 1),
            "processor_seconds_over_threads": round((time.process_time() - used) / arguments.threads, 1),
            "peak_memory_gb": round(memory_gb(), 2),
        }
        rows.append(row)
        print(json.dumps(row))
    if arguments.json:
        content = {"machine": machine(), "count": arguments.count, "width": arguments.width, "results": rows}
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def features(count: int, width: int, seed: int) -> Tensor:
    """Correlated vectors ``[count, width]`` whose spread falls off."""
    generator = torch.Generator().manual_seed(seed)
    spread = torch.arange(1, width + 1).float() ** -0.5
    mixing = torch.linalg.qr(torch.randn(width, width, generator=torch.Generator().manual_seed(9))).Q
    found = torch.empty(count, width)
    for first in range(0, count, 4096):
        part = found[first : first + 4096]
        part.copy_((torch.randn(part.shape, generator=generator) * spread) @ mixing + 0.05 * seed)
    return found


def gaussian(vectors: Tensor) -> Gaussian:
    """Statistics of vectors that come some at a time, as an evaluation sees them."""
    moments = Moments(vectors.shape[1])
    for part in vectors.split(500):
        moments.update(part)
    return moments.gaussian()


def memory_gb() -> float:
    """Largest resident memory so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 20)


if __name__ == "__main__":
    main()
