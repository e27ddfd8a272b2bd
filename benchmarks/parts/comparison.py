"""How contestants are measured side by side: turns, a time budget, and one ``Row`` for each of them.

All contestants of a load take turns, forwards and backwards, with the machine's products in every turn, so that a machine
whose speed drifts is seen by all alike. What does not fit the budget is measured in part where that is honest (see
``loads.Job``), else left out with the reason.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from parts.contestants import Contestant
from parts.goals import Goal
from parts.loads import Job, LeftOutError, Load, Models
from parts.measuring import seconds
from parts.meters import best_matmul, count_units, free_memory, peak_memory, spread

from maskgen.precision import default_matmul, fast_matmul

__all__ = ["Row", "Verdict", "measure_load", "plan", "verdicts"]


@dataclass(kw_only=True)
class Row:
    """One contestant under one load.

    Attributes:
        contestant: its name.
        device: where it ran.
        dtype: of the weights.
        tokens: N.
        batch: B.
        steps: of parallel decoding.
        flops: of the whole batch.
        held: bytes of weights and caches.
        units: forwards of the whole job.
        measured: how many of them were run in a turn.
        walls: wall seconds of the whole job, one a turn, scaled up where ``measured`` is less than ``units``.
        processor: processor seconds over the threads, likewise; on a GPU the wall time.
        default_products: FLOP/s of torch's default product, one a turn.
        products: FLOP/s of the product in use, one a turn.
        peak: bytes a run took beyond ``held``; None if the system does not tell or nothing ran.
        left_out: why nothing ran, else empty.
    """

    contestant: str
    device: str
    dtype: str
    tokens: int
    batch: int
    steps: int
    flops: int = 0
    held: int = 0
    units: int = 0
    measured: int = 0
    walls: list[float] = field(default_factory=list)
    processor: list[float] = field(default_factory=list)
    default_products: list[float] = field(default_factory=list)
    products: list[float] = field(default_factory=list)
    peak: int | None = None
    left_out: str = ""

    @property
    def seconds(self) -> float | None:
        """Median wall time of the whole job."""
        return statistics.median(self.walls) if self.walls else None

    @property
    def images_per_second(self) -> float | None:
        """By the wall clock."""
        return None if self.seconds is None else self.batch / self.seconds

    def share(self, products: Sequence[float]) -> float | None:
        """FLOP/s by processor time over the FLOP/s of a product measured in the same turn; the median of turns."""
        turns = [self.flops / spent / rate for spent, rate in zip(self.processor, products, strict=False)]
        return statistics.median(turns) if turns else None


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """A goal under one load: the ratio by wall and by processor time, and whether it is met (None: only told)."""

    goal: Goal
    device: str
    tokens: int
    batch: int
    wall: float
    processor: float
    met: bool | None


@dataclass
class _Entry:
    """A contestant that takes part in the turns of a load."""

    row: Row
    job: Job
    turns: int
    memory: int


def plan(job: Job, whole: float, allowed: float, turns: int) -> tuple[int, int] | None:
    """How much of a job fits into a time: (units a turn, turns), or None where not even the least does.

    Args:
        job: the work.
        whole: seconds that all its units take.
        allowed: seconds there are, for all turns together.
        turns: how many are wished for.
    """
    least = min(job.least, job.units) if job.divisible else job.units
    for wished in range(turns, 0, -1):
        count = min(job.units, int(allowed * job.units / (max(whole, 1e-9) * wished)))
        if count >= least:
            return (count if job.divisible else job.units), wished
    return None


def measure_load(
    load: Load,
    contestants: Sequence[Contestant],
    models: Models,
    *,
    minutes: float,
    turns: int,
    say: Callable[[str], Any],
) -> list[Row]:
    """Rows of all contestants that can take part here.

    Args:
        load: what they make.
        contestants: who.
        models: on ``load.device``.
        minutes: for all of them together, each getting the same share.
        turns: at most.
        say: told in one line why somebody cannot take part.
    """
    contestants = [contestant for contestant in contestants if load.device in contestant.devices]
    if not contestants:
        return []
    begun, allowed = time.monotonic(), minutes * 60 / len(contestants)
    with fast_matmul(load.device):
        rate = best_matmul(load.device, load.dtype)
    rows, entries = [], []
    for contestant in contestants:
        row = _row(contestant, load)
        try:
            entry = _prepare(contestant, row, load, models, allowed, rate, turns)
        except LeftOutError as reason:
            say(str(reason))
            continue
        rows.append(row)
        if entry is not None:
            entries.append(entry)
    for turn in range(turns):
        if not entries or (turn and time.monotonic() - begun > minutes * 60):
            break
        _turn(turn, entries, load)
    return rows


def verdicts(rows: Sequence[Row], goals: Sequence[Goal]) -> list[Verdict]:
    """Goals under every load in which both contestants ran: medians over the turns of their ratios."""
    found = {(row.contestant, row.device, row.tokens, row.batch): row for row in rows if row.walls}
    told = []
    for goal in goals:
        for (name, device, tokens, batch), over in found.items():
            under = found.get((goal.under, device, tokens, batch))
            limits = ((goal.tokens, tokens), (goal.batches, batch), (goal.devices, device))
            outside = any(allowed and value not in allowed for allowed, value in limits)
            if name != goal.over or under is None or outside:
                continue
            wall, processor = (
                statistics.median(a / b for a, b in zip(*pair, strict=False))
                for pair in ((over.walls, under.walls), (over.processor, under.processor))
            )
            kept = [wall >= goal.least] if goal.least is not None else []
            kept += [wall <= goal.most] if goal.most is not None else []
            met = all(kept) if kept else None
            told.append(
                Verdict(goal=goal, device=device, tokens=tokens, batch=batch, wall=wall, processor=processor, met=met)
            )
    return told


def _row(contestant: Contestant, load: Load) -> Row:
    return Row(
        contestant=contestant.name,
        device=load.device,
        dtype=str(load.dtype).removeprefix("torch."),
        tokens=load.places,
        batch=load.batch,
        steps=load.steps,
    )


def _prepare(
    contestant: Contestant, row: Row, load: Load, models: Models, allowed: float, rate: float, turns: int
) -> _Entry | None:
    """Count, check memory and time, warm up; None where the row says why nothing will run."""
    on_meta = replace(load, device="meta")
    counting = contestant.build(on_meta, Models(on_meta))
    row.units = counting.units
    row.flops = count_units(counting.run, counting.units, quadratic=counting.quadratic)
    row.left_out = _too_large(contestant.memory(load) + contestant.cache(load), load)
    if row.left_out:
        return None
    least = row.flops / rate  # nothing goes faster than the best product
    if plan(counting, least, allowed, turns) is None:
        row.left_out = _too_long(counting, least, allowed)
        return None
    job = contestant.build(load, models)
    row.held = job.held
    whole = max(least, _warm_up(job, load, allowed))
    fits = plan(job, whole, allowed, turns)
    if fits is None:
        row.left_out = _too_long(job, whole, allowed)
        return None
    row.measured, turns = fits
    return _Entry(row, job, turns, contestant.memory(load))


def _too_large(needed: int, load: Load) -> str:
    """Why so much memory cannot be had now, or an empty string."""
    free = free_memory(load.device)
    fits = free is None or needed <= 0.9 * free
    return "" if fits else f"needs about {needed / 1e9:.1f} GB, {(free or 0) / 1e9:.1f} GB are free"


def _too_long(job: Job, whole: float, allowed: float) -> str:
    least = min(job.least, job.units) if job.divisible else job.units
    return f"{least} of {job.units} forwards take {whole * least / job.units:.3g} s or more, there were {allowed:.3g} s"


def _warm_up(job: Job, load: Load, allowed: float) -> float:
    """Seconds all units take, judged by one that is run to make kernels and memory ready; 0 where none is run."""
    if job.warm is not None:
        job.warm()
    if not job.divisible:
        return 0.0
    one = spread(job.units, 1)
    took = seconds(lambda: job.run(one), load.device)
    if took < allowed / 20:  # the first call also pays for what is made once
        took = min(took, seconds(lambda: job.run(one), load.device))
    return took * job.units


def _turn(turn: int, entries: Sequence[_Entry], load: Load) -> None:
    """One turn of everybody, backwards every other time, beside the machine's products."""
    with default_matmul():
        default_product = best_matmul(load.device, load.dtype)
    with fast_matmul(load.device):
        product = best_matmul(load.device, load.dtype)
    for entry in entries if turn % 2 == 0 else entries[::-1]:
        row, job = entry.row, entry.job
        if turn >= entry.turns or row.left_out:
            continue
        if reason := _too_large(entry.memory, load):  # caches of others may have taken it since
            row.left_out = "" if row.walls else reason
            continue
        units = range(job.units) if row.measured == job.units else spread(job.units, row.measured)
        try:
            with peak_memory(load.device) as peak:
                used = time.process_time()
                wall = seconds(lambda: job.run(units), load.device)  # noqa: B023
                used = time.process_time() - used
        except torch.OutOfMemoryError:
            row.left_out = "out of memory"
            continue
        spent = used / torch.get_num_threads() if load.device == "cpu" else wall
        scale = job.units / row.measured
        row.walls.append(wall * scale)
        row.processor.append(spent * scale)
        row.default_products.append(default_product)
        row.products.append(product)
        if peak.bytes is not None:
            row.peak = max(row.peak or 0, peak.bytes)
