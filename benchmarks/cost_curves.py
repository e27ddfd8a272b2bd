"""How the cost of sampling grows with tokens, steps, batch and codebooks, measured against counted FLOPs.

    python benchmarks/cost_curves.py

One curve for each, the other three at their base. A small model of the modern family by default, which takes any grid and
any number of codebooks; ``--width 768 --layers 24 --heads 12 --batch 1`` is the official size. Every curve gets an even
share of the minutes that are left and goes as far as that allows; the report says where it stopped. Random weights.

Shapes: B batch, N tokens, K codebooks.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from parts.comparison_report import markdown_table, write_text
from parts.measuring import machine, seconds
from parts.meters import counted, free_memory, square_grid

from maskgen.conditioning import Cond
from maskgen.models.modern import ModernConfig, ModernTransformer
from maskgen.precision import fast_matmul
from maskgen.sampling.guidance import model_logits
from maskgen.sampling.loop import sample
from maskgen.sampling.selectors.named import get_selector
from maskgen.sampling.speed.plan import plan_steps
from maskgen.schedules import get_schedule
from maskgen.tasks.media import plots

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Curve", "Measured", "Point", "exponent", "flops_of", "main", "measure_curve", "work_of"]


@dataclass(frozen=True, kw_only=True)
class Point:
    """What is sampled: B images of N tokens in K codebooks, in so many steps."""

    tokens: int = 256
    steps: int = 8
    batch: int = 8
    codebooks: int = 1


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A point, its FLOPs counted, and the best of its runs in seconds by the clock and by processor time."""

    point: Point
    flops: int
    wall: float
    processor: float
    runs: int


@dataclass(kw_only=True)
class Curve:
    """Points along one quantity, and why there are no more of them (empty: all were measured)."""

    along: str
    measured: list[Measured] = field(default_factory=list)
    stopped: str = ""


VALUES: dict[str, tuple[int, ...]] = {
    "tokens": (64, 128, 256, 512, 1024, 2048, 4096),
    "steps": (4, 8, 16, 32, 64),
    "batch": (1, 2, 4, 8, 16, 32, 64, 128, 256),
    "codebooks": (1, 2, 3, 4, 5, 6, 7, 8, 9),
}


def main(words: Sequence[str] | None = None) -> None:
    """Measure, print, and write the three files."""
    arguments = _parser().parse_args(words)
    config = ModernConfig(
        vocab_size=arguments.vocab, width=arguments.width, layers=arguments.layers, heads=arguments.heads
    )
    base = Point(tokens=arguments.base_tokens, steps=arguments.steps, batch=arguments.batch)
    ends = time.monotonic() + 60 * arguments.minutes
    curves = []
    for index, along in enumerate(arguments.curves):
        budget = max(0.0, ends - time.monotonic()) / (len(arguments.curves) - index)
        print(f"{along}: at most {budget:.0f} s", flush=True)
        points = [replace(base, **{along: value}) for value in getattr(arguments, along + "_values")]
        curves.append(measure_curve(along, points, config, arguments.device, budget=budget, runs=arguments.runs))
    settings = {name: getattr(arguments, name) for name in ("width", "layers", "heads", "vocab", "minutes", "device")}
    text = report(curves, settings)
    print(text)
    whole = {"machine": machine(), "settings": settings, "curves": [asdict(curve) for curve in curves]}
    for suffix, content in {"md": text, "json": json.dumps(whole, indent=2) + "\n"}.items():
        print(write_text(arguments.out / f"cost_curves.{suffix}", content))
    print(plots.save_plot(plot(curves), arguments.out / "cost_curves.svg"))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=20, help="for the whole run, about")
    parser.add_argument("--runs", type=int, default=3, help="of each point; the best counts")
    parser.add_argument("--curves", nargs="+", default=list(VALUES), choices=list(VALUES))
    for along, values in VALUES.items():
        parser.add_argument(f"--{along}-values", type=int, nargs="+", default=list(values), metavar="N")
    parser.add_argument("--base-tokens", type=int, default=256, help="where the other curves stand")
    parser.add_argument("--steps", type=int, default=8, help="where the other curves stand")
    parser.add_argument("--batch", type=int, default=8, help="where the other curves stand")
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--heads", type=int, default=6)
    parser.add_argument("--vocab", type=int, default=1024, help="codes of a codebook")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"], help="cuda: float32, has not been run yet")
    parser.add_argument("--out", type=Path, default=Path("out/cost_curves"), help="folder for .md, .json and .svg")
    return parser


def work_of(point: Point, config: ModernConfig, device: str) -> Callable[[], torch.Tensor]:
    """The whole loop of a point on random weights: a call makes its ids, ``[B, N, K]``."""
    grid = square_grid(point.tokens)
    torch.manual_seed(0)
    with torch.device(device):
        model = ModernTransformer(replace(config, axes=grid, num_codebooks=point.codebooks)).eval()
        cond = Cond(labels=torch.arange(point.batch) % config.num_classes)
        tokens = torch.full((point.batch, point.tokens, point.codebooks), config.vocab_size)
        mask = torch.ones_like(tokens, dtype=torch.bool)

    def work() -> torch.Tensor:
        with fast_matmul(device):
            return sample(model_logits(model, cond), tokens, mask, steps=point.steps, seeds=range(point.batch))

    return work


def flops_of(point: Point, config: ModernConfig) -> int:
    """Closed form of the FLOPs of a loop, a multiply-add as two: what the counter must find.

    A forward of one image: layers x (8 N D^2 + 6 N D M + 4 N^2 D) for attention and a gated feed-forward of width M, and
    2 N K D V for the head. Of the last layer only keys and values are of all N, 4 N D^2; the rest of it and the head are of
    the P places still hidden, P for N in one factor of each product. Once a call: 12 D^2 for the six modulations of each
    layer and 4 D^2 for the last one, of every image, and for all images the table of positions, 2 N (D / H) D.
    """
    width, n, layers = config.width, point.tokens, config.layers
    hidden = 8 * round(config.mlp_ratio * width / 8)
    mask = torch.ones(1, n, point.codebooks, dtype=torch.bool)
    options = {"steps": point.steps, "start_step": 0, "every_step": False}
    plan = plan_steps(mask, get_schedule("cosine"), get_selector("confidence"), **options)
    total = 2 * n * (width // config.heads) * width + point.batch * (12 * layers + 4) * width**2
    for step in plan.run:
        p = plan.masked[step]
        whole = (layers - 1) * (8 * n * width**2 + 6 * n * width * hidden + 4 * n**2 * width)
        last = 4 * (n + p) * width**2 + 6 * p * width * hidden + 4 * p * n * width
        total += point.batch * (whole + last + 2 * p * width * point.codebooks * config.vocab_size)
    return total


def measure_curve(
    along: str, points: Sequence[Point], config: ModernConfig, device: str, *, budget: float, runs: int
) -> Curve:
    """Points in their order until the next one is expected to end after ``budget`` seconds or to need too much memory.

    A point is expected to take as long as the last one, times the ratio of their FLOPs.
    """
    curve, ends, pace = Curve(along=along), time.monotonic() + budget, 0.0
    for point in points:
        flops = counted(work_of(point, config, "meta"))
        left, expected = ends - time.monotonic(), flops * pace
        needed, free = _memory(point, config), free_memory(device)
        value = getattr(point, along)
        if left <= 0 or 2 * expected > left:  # a first run makes kernels and memory ready, a second one counts
            curve.stopped = f"before {value:,}: {2 * expected:.0f} s expected, {max(left, 0):.0f} s left"
            return curve
        if free is not None and needed > 0.9 * free:
            curve.stopped = f"before {value:,}: needs about {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are free"
            return curve
        work = work_of(point, config, device)
        took = seconds(work, device)
        walls: list[float] = []
        spent: list[float] = []
        while len(walls) < runs and (not walls or time.monotonic() + took < ends):
            used = time.process_time()
            walls.append(seconds(work, device))
            used = (time.process_time() - used) / torch.get_num_threads()
            spent.append(used if device == "cpu" else walls[-1])
            took = min(walls)
        pace = min(walls) / flops
        curve.measured.append(
            Measured(point=point, flops=flops, wall=min(walls), processor=min(spent), runs=len(walls))
        )
        print(f"  {along} {value:,}: {min(walls):.3f} s, {flops / 1e9:,.4g} GFLOP", flush=True)
    return curve


def exponent(measured: Sequence[Measured]) -> float | None:
    """The power p of seconds = c FLOPs^p, least squares on logarithms; 1 if time follows the FLOPs, None for one point."""
    points = [(math.log(m.flops), math.log(m.wall)) for m in measured]
    if len(points) < 2:
        return None
    x_mean, y_mean = (sum(column) / len(points) for column in zip(*points, strict=True))
    spread = sum((x - x_mean) ** 2 for x, _ in points)
    return sum((x - x_mean) * (y - y_mean) for x, y in points) / spread if spread else None


def report(curves: Sequence[Curve], settings: dict[str, Any]) -> str:
    """Markdown: a table a curve, how it grows, and where it stopped."""
    parts = ["# How the cost of sampling grows", _facts(machine()), _facts(settings)]
    parts.append(
        "Seconds are the best run of the whole loop; GFLOP are counted (torch's FlopCounterMode, a multiply-add as two). "
        "The last column is the time per FLOP over that of the curve's cheapest point."
    )
    for curve in curves:
        parts.append(f"## {curve.along.capitalize()}")
        if curve.measured:
            parts += [_fixed(curve), _table(curve)]
        if (power := exponent(curve.measured)) is not None:
            parts.append(f"Time grows as FLOPs^{power:.2f} over these points.")
        parts.append(f"Stopped {curve.stopped}." if curve.stopped else "All points were measured.")
    return "\n\n".join(parts) + "\n"


def plot(curves: Sequence[Curve]) -> Figure:
    """Measured seconds, and seconds if every FLOP took as long as at the cheapest point; as a figure."""
    panels = []
    for curve in curves:
        walls = [(getattr(m.point, curve.along), m.wall) for m in curve.measured]
        best = min((m.wall / m.flops for m in curve.measured), default=0.0)
        counts = [(getattr(m.point, curve.along), m.flops * best) for m in curve.measured]
        drawn = [
            plots.Curve(label="measured", points=walls),
            plots.Curve(label="counted FLOPs at the best pace", points=counts, dashed=True),
        ]
        heading = f"{curve.along}" + (f" (stopped {curve.stopped})" if curve.stopped else "")
        panels.append(plots.Panel(x=curve.along, y="seconds", curves=drawn, heading=heading, log=True))
    return plots.plot_curves(panels, "Cost of a sampling loop")


def _table(curve: Curve) -> str:
    best = min(m.wall / m.flops for m in curve.measured)
    rows = [
        [
            f"{getattr(m.point, curve.along):,}",
            f"{m.flops / 1e9:,.4g}",
            f"{m.wall:.4g}",
            f"{m.processor:.4g}",
            str(m.runs),
            f"{m.flops / m.wall / 1e9:,.4g}",
            f"{m.wall / m.flops / best:.2f}",
        ]
        for m in curve.measured
    ]
    headings = (curve.along, "GFLOP", "seconds", "processor seconds", "runs", "GFLOP/s", "time per FLOP")
    return markdown_table(headings, rows)


def _fixed(curve: Curve) -> str:
    others = {name: value for name, value in asdict(curve.measured[0].point).items() if name != curve.along}
    return "With " + _facts(others) + "."


def _facts(facts: dict[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in facts.items())


def _memory(point: Point, config: ModernConfig) -> int:
    """Rough bytes of a loop: hidden layers, and logits with their noise, which is made in float64."""
    places = point.batch * point.tokens
    return places * (4 * 8 * config.width + 4 * 8 * config.width + 28 * point.codebooks * config.vocab_size)


if __name__ == "__main__":
    main()
