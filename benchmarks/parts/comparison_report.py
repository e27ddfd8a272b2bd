"""Rows of ``comparison.py`` as a table, as JSON and as a plot."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from parts.comparison import Row, Verdict
from parts.contestants import Contestant

from maskgen.checkpoint import atomic_file
from maskgen.tasks.media.plots import Bar, plot_bars, save_plot

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Report", "markdown_table", "write_text"]

HEADINGS = (
    "device", "tokens", "batch", "contestant", "images/s", "seconds", "latency, batch 1 (s)", "GFLOP/image",
    "of default product", "of product in use", "peak memory (MB)", "measured",
)  # fmt: skip

READING = """\
Seconds are wall time for the whole batch, the median of the turns. `of default product` and `of product in use` divide
FLOP/s by processor time by those of a square product of size 2,048 in the same turn (on a GPU in bf16: of size 8,192, by
the clock).
FLOPs are counted with torch's FlopCounterMode, a multiply-add as two; the square of causal attention is counted whole.
Peak memory is weights and caches plus what a run takes beyond them. `3 of 8 forwards` means that the rest did not fit the
time budget: seconds are then scaled up from a part that costs its share of the whole. Ratios are medians over the turns."""


@dataclass(kw_only=True)
class Report:
    """What one run of the command found.

    Attributes:
        machine: see ``measuring.machine``.
        settings: of the run, as on the command line.
        rows: one a contestant and load.
        verdicts: one a goal and load.
        contestants: who took part.
        remarks: lines about what could not be measured here.
    """

    machine: dict[str, Any]
    settings: dict[str, Any]
    rows: list[Row] = field(default_factory=list)
    verdicts: list[Verdict] = field(default_factory=list)
    contestants: Sequence[Contestant] = ()
    remarks: list[str] = field(default_factory=list)

    def text(self) -> str:
        """Markdown that reads well on a terminal."""
        parts = ["# Samplers side by side", _facts(self.machine), _facts(self.settings)]
        parts += [f"**{remark}**" for remark in self.remarks]
        parts.append(markdown_table(HEADINGS, [self._cells(row) for row in self.rows]))
        goals = [_goal_cells(verdict) for verdict in self.verdicts]
        if goals:
            headings = ("ratio", "device", "tokens", "batch", "by the clock", "by processor time", "goal", "")
            parts.append(markdown_table(headings, goals))
        parts.append("\n".join(f"- {contestant.name}: {contestant.note}" for contestant in self.contestants))
        return "\n\n".join([*parts, READING]) + "\n"

    def json(self) -> str:
        """The numbers, and what the columns of the table derive from them."""
        rows = [{**asdict(row), **_derived(row)} for row in self.rows]
        told = [
            {
                "ratio": v.goal.text,
                "over": v.goal.over,
                "under": v.goal.under,
                "least": v.goal.least,
                "most": v.goal.most,
            }
            | {"device": v.device, "tokens": v.tokens, "batch": v.batch}
            | {"wall": round(v.wall, 4), "processor": round(v.processor, 4), "met": v.met}
            for v in self.verdicts
        ]
        whole = {"machine": self.machine, "settings": self.settings, "remarks": self.remarks}
        return json.dumps(whole | {"results": rows, "ratios": told}, indent=2) + "\n"

    def plot(self) -> Figure:
        """Images a second as bars, one panel a load."""
        loads = dict.fromkeys((row.device, row.tokens, row.batch) for row in self.rows)
        panels = []
        for device, tokens, batch in loads:
            shown = [
                Bar(label=row.contestant, value=row.images_per_second, strong=row.contestant.startswith("maskgen"),
                    note=f"{row.images_per_second:.3g} images/s")
                for row in self.rows
                if (row.device, row.tokens, row.batch) == (device, tokens, batch) and row.images_per_second
            ]  # fmt: skip
            panels.append((f"{device}, {tokens:,} tokens, batch {batch}", shown))
        return plot_bars(panels, f"Images a second (logarithmic scale), {self.machine['cpu']}", log=True)

    def write(self, folder: Path) -> list[Path]:
        """Write ``compare_samplers.md``, ``.json`` and ``.svg`` into a folder; returns their paths."""
        made = {"md": self.text(), "json": self.json()}
        paths = [write_text(folder / f"compare_samplers.{suffix}", text) for suffix, text in made.items()]
        return [*paths, save_plot(self.plot(), folder / "compare_samplers.svg")]

    def _cells(self, row: Row) -> list[str]:
        one = next(
            (r.seconds for r in self.rows
             if (r.contestant, r.device, r.tokens, r.batch) == (row.contestant, row.device, row.tokens, 1)),
            None,
        )  # fmt: skip
        peak = None if row.peak is None else (row.peak + row.held) / 1e6
        measured = row.left_out or (
            f"all {row.units}" if row.measured == row.units else f"{row.measured} of {row.units} forwards"
        )
        return [
            f"{row.device} {row.dtype}", f"{row.tokens:,}", str(row.batch), row.contestant,
            _number(row.images_per_second), _number(row.seconds), _number(one), f"{row.flops / row.batch / 1e9:,.4g}",
            _percent(row.share(row.default_products)), _percent(row.share(row.products)),
            "-" if peak is None else f"{peak:,.0f}", measured,
        ]  # fmt: skip


def markdown_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table with columns of even width."""
    widths = [max(len(row[column]) for row in (headings, *rows)) for column in range(len(headings))]
    shown = [
        " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in (headings, *rows)
    ]
    rule = "|".join("-" * (width + 2) for width in widths)
    return "\n".join([f"| {shown[0]} |", f"|{rule}|", *(f"| {line} |" for line in shown[1:])])


def write_text(path: Path, text: str) -> Path:
    """Write a file that is never seen half done."""
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return path


def _derived(row: Row) -> dict[str, Any]:
    default, used = row.share(row.default_products), row.share(row.products)
    return {
        "seconds": row.seconds,
        "images_per_second": row.images_per_second,
        "gflop_per_image": row.flops / row.batch / 1e9,
        "share_of_default_product": default,
        "share_of_product_in_use": used,
        "peak_mb": None if row.peak is None else (row.peak + row.held) / 1e6,
    }


def _goal_cells(verdict: Verdict) -> list[str]:
    goal = verdict.goal
    wanted = f"at least {goal.least:g}" if goal.least is not None else ""
    wanted += f"at most {goal.most:g}" if goal.most is not None else ""
    return [
        goal.text, verdict.device, f"{verdict.tokens:,}", str(verdict.batch), f"{verdict.wall:.3f}",
        f"{verdict.processor:.3f}", wanted, {None: "", True: "met", False: "not met"}[verdict.met],
    ]  # fmt: skip


def _facts(facts: dict[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in facts.items())


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.0%}"
