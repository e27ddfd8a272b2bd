"""What a running training tells: ``log.jsonl``, the trackers, and how fast it is."""

import json
import math
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from maskgen.checkpoint import atomic_file
from maskgen.data import Batch
from maskgen.training.objective import Objective


class StepStats:
    """What the steps since the last log line came to, on this process; sums stay on the device."""

    def __init__(self) -> None:
        self.steps, self.tokens, self.examples = 0, 0, 0
        self.flops = 0.0
        self.waited = 0.0
        """Seconds in which the next batch was not there yet."""
        self._began = time.perf_counter()
        # By the names a step reported (they change when a discriminator joins in): their sums, and of how many steps.
        self._sums: dict[tuple[str, ...], Tensor] = {}

    def count(self, batch: Batch, objective: Objective) -> None:
        """A micro-batch of this process."""
        self.tokens += objective.units(batch)
        self.examples += len(next(iter(batch.values())))
        self.flops += objective.flops(batch)

    def add(self, metrics: dict[str, Tensor], skip: Tensor) -> None:
        """One step's numbers; those of a skipped one (``skip`` = 1) do not enter the means."""
        self.steps += 1
        names = tuple(metrics)
        row = torch.stack([*(value.detach().to(skip) for value in metrics.values()), torch.ones_like(skip)])
        row = torch.where(skip > 0, torch.zeros_like(row), row)
        before = self._sums.get(names)
        self._sums[names] = row if before is None else before + row

    def means(self, accelerator: Accelerator) -> dict[str, float]:
        """Mean of every number over the steps that counted and over processes; one reading from the device.

        A number of which no step counted is left out.
        """
        if not self._sums:
            return {}
        everything: Any = accelerator.reduce(torch.cat(list(self._sums.values())), reduction="sum")
        listed = iter(everything.tolist())
        totals: dict[str, list[float]] = {}
        for names in self._sums:
            values = [next(listed) for _ in names]
            count = next(listed)
            for name, value in zip(names, values, strict=True):
                total = totals.setdefault(name, [0.0, 0.0])
                total[0], total[1] = total[0] + value, total[1] + count
        return {name: value / count for name, (value, count) in totals.items() if count}

    def batches(self, source: Iterator[Batch]) -> Iterator[Batch]:
        """The batches of a source, with the time that they are waited for."""
        while True:
            began = time.perf_counter()
            batch = next(source, None)
            self.waited += time.perf_counter() - began
            if batch is None:
                return
            yield batch

    def speed(self, accelerator: Accelerator, precision: str) -> dict[str, float]:
        """Rates over all processes.

        Args:
            accelerator: of the run.
            precision: ``mixed_precision`` of the run.

        Returns:
            ``tokens_per_second``, ``examples_per_second``, ``data_wait`` (share of the time), ``mfu`` where the objective
            counts its operations, and on a GPU ``peak_memory_gib``.
        """
        seconds = max(1e-9, time.perf_counter() - self._began)
        world = accelerator.num_processes
        values = {
            "tokens_per_second": self.tokens * world / seconds,
            "examples_per_second": self.examples * world / seconds,
            "data_wait": self.waited / seconds,
        }
        if self.flops:
            values["mfu"] = self.flops / seconds / peak_flops(accelerator.device, precision)
        if accelerator.device.type == "cuda":
            values["peak_memory_gib"] = torch.cuda.max_memory_allocated() / 2**30
        return values


class RunLog:
    """Lines in ``log.jsonl`` and to the tracker; only the main process writes.

    Args:
        accelerator: of the run.
        path: of the file.
    """

    def __init__(self, accelerator: Accelerator, path: Path) -> None:
        self.accelerator, self.path = accelerator, path

    def write(self, line: dict[str, float]) -> None:
        """One line; must hold ``step``."""
        if self.accelerator.is_main_process:
            with self.path.open("a", encoding="utf-8") as handle:
                handle.write(json.dumps(line) + "\n")
        values = {name: value for name, value in line.items() if name != "step"}
        self.accelerator.log(values, step=int(line["step"]))

    def forget_after(self, step: int) -> None:
        """Drop lines of steps that a killed run made after its last checkpoint: they are about to be made again."""
        if not self.accelerator.is_main_process or not self.path.is_file():
            return
        lines = self.path.read_text(encoding="utf-8").splitlines()
        kept = [line for line in lines if line.endswith("}") and json.loads(line)["step"] <= step]
        if kept != lines:
            with atomic_file(self.path) as temporary:
                temporary.write_text("".join(line + "\n" for line in kept), encoding="utf-8")


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
    a = b = torch.ones(size, size, device=device, dtype=kind)  # random numbers would disturb the training's
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
