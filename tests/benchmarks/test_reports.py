"""The comparison of samplers and the cost curves: what is planned, counted, compared and written, never how fast it is."""

import json
import sys
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

sys.path.append(str(Path(__file__).resolve().parents[2] / "benchmarks"))  # scripts, not a package

import compare_samplers
import cost_curves
from cost_curves import Measured, Point, exponent, flops_of, measure_curve, work_of
from parts import comparison, meters
from parts.comparison import Row, plan, verdicts
from parts.comparison_report import Report, markdown_table
from parts.contestants import CONTESTANTS
from parts.goals import GOALS, Goal
from parts.loads import Job
from parts.meters import count_units, peak_memory, spread, square_grid

from maskgen.models.modern import ModernConfig
from maskgen.tasks.media.plots import save_plot

MODERN = ModernConfig(vocab_size=7, width=24, layers=2, heads=3, num_classes=5)
TINY = ["--layers", "1", "--width", "16", "--heads", "2", "--vocab", "8", "--steps", "2", "--turns", "2"]
TEXT = "{http://www.w3.org/2000/svg}text"


@pytest.fixture
def quick_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """Products of size 2,048 take seconds and are not what is tested."""
    monkeypatch.setattr(comparison, "best_matmul", lambda device, dtype: 1e12)


def job(**changes: Any) -> Job:
    return Job(**{"units": 8, "run": lambda units: None, "held": 0, **changes})


def row(name: str, walls: list[float], **changes: Any) -> Row:
    facts = {"device": "cpu", "dtype": "float32", "tokens": 256, "batch": 8, "steps": 8, "flops": 8 * 10**9}
    measured = {"units": 8, "measured": 8, "walls": walls, "processor": [wall / 2 for wall in walls]}
    products = {"default_products": [1e9] * len(walls), "products": [2e9] * len(walls)}
    return Row(contestant=name, **{**facts, **measured, **products, **changes})  # type: ignore[arg-type]


# Plans and measures


@given(units=st.integers(1, 300), data=st.data())
def test_spread_is_even(units: int, data: st.DataObject) -> None:
    count = data.draw(st.integers(1, units))
    found = spread(units, count)
    assert len(set(found)) == count
    assert 0 <= found[0] <= found[-1] < units
    assert spread(units, units) == list(range(units))
    # A cost that grows linearly is estimated without bias, but for rounding down.
    assert -0.5 <= sum(found) / count - (units - 1) / 2 <= 0.5


@pytest.mark.parametrize(
    ("changes", "whole", "allowed", "expected"),
    [
        ({}, 10.0, 100.0, (8, 3)),  # all of it, three times
        ({}, 10.0, 15.0, (4, 3)),  # half of it, three times
        ({}, 10.0, 2.6, (1, 2)),  # one unit, twice
        ({}, 10.0, 1.0, None),
        ({"least": 4}, 10.0, 11.0, (4, 2)),
        ({"least": 4}, 10.0, 4.0, None),
        ({"least": 20}, 10.0, 12.0, (8, 1)),  # least never exceeds what there is
        ({"divisible": False}, 10.0, 25.0, (8, 2)),
        ({"divisible": False}, 10.0, 9.0, None),
        ({}, 0.0, 1.0, (8, 3)),
    ],
)
def test_plans_fit_the_time(
    changes: dict[str, Any], whole: float, allowed: float, expected: tuple[int, int] | None
) -> None:
    assert plan(job(**changes), whole, allowed, turns=3) == expected


def test_grids_are_nearly_square() -> None:
    assert [square_grid(n) for n in (1, 7, 64, 128, 256, 2048, 4096)] == [
        (1, 1), (1, 7), (8, 8), (8, 16), (16, 16), (32, 64), (64, 64),
    ]  # fmt: skip


def test_three_counts_give_the_sum_of_a_quadratic(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[int] = []
    monkeypatch.setattr(meters, "counted", lambda work: work())

    def run(units: Any) -> int:
        done.extend(units)
        return sum(5 + 3 * unit + 2 * unit**2 for unit in units)

    expected = sum(5 + 3 * unit + 2 * unit**2 for unit in range(100))
    assert count_units(run, 100, quadratic=True) == expected
    assert done == [0, 1, 2]
    assert count_units(run, 100) == expected
    assert count_units(run, 2, quadratic=True) == 15


def test_peak_memory_sees_what_is_gone_afterwards() -> None:
    with peak_memory("cpu") as large:
        torch.ones(16_000_000).sum()
    with peak_memory("cpu") as small:
        torch.ones(1000).sum()
    assert large.bytes is not None
    assert small.bytes is not None
    assert 60e6 < large.bytes < 100e6
    assert small.bytes < 20e6


# Goals


def test_verdicts_are_medians_of_turns() -> None:
    goals = (
        Goal(text="faster", over="plain", under="ours", least=1.5, tokens=(256,)),
        Goal(text="no slower than bare", over="ours", under="bare", most=1.01, batches=(8,)),
        Goal(text="told", over="plain", under="bare"),
        Goal(text="elsewhere", over="plain", under="ours", devices=("cuda",)),
        Goal(text="absent", over="nobody", under="ours"),
    )
    rows = [
        row("ours", [1.0, 2.0, 1.0]), row("plain", [1.6, 3.0, 1.7]), row("bare", [1.0, 1.0]),
        row("ours", [1.0], tokens=1024), row("plain", [1.2], tokens=1024), row("bare", [], left_out="too long"),
    ]  # fmt: skip
    found = {(verdict.goal.text, verdict.tokens): (verdict.wall, verdict.met) for verdict in verdicts(rows[:5], goals)}
    assert found == {
        ("faster", 256): (pytest.approx(1.6), True),
        ("no slower than bare", 256): (pytest.approx(1.5), False),
        ("told", 256): (pytest.approx(2.3), None),
    }
    assert verdicts(rows[-1:], goals) == []


def test_goals_name_contestants() -> None:
    names = [contestant.name for contestant in CONTESTANTS]
    assert len(names) == len(set(names))
    assert {goal.over for goal in GOALS} | {goal.under for goal in GOALS} <= set(names)


def test_the_report_tells_what_was_measured(tmp_path: Path) -> None:
    rows = [row("ours", [4.0, 2.0, 4.0], peak=5_000_000, held=1_000_000), row("ours", [0.5], batch=1, flops=10**9)]
    rows += [row("slow", [16.0], measured=3), row("huge", [], left_out="needs about 99.0 GB, 1.0 GB are free")]
    machine = {"cpu": "a <fast> & cheap one"}
    report = Report(
        machine=machine, settings={"turns": 3}, rows=rows, verdicts=verdicts(rows, GOALS), remarks=["No GPU."]
    )
    table = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in report.text().splitlines() if "|" in line
    ]
    # 8 images in 4 s; 8 GFLOP in 2 processor seconds are 4 GFLOP/s, where the products gave 1 and 2.
    assert table[2] == [
        "cpu float32", "256", "8", "ours", "2", "4", "0.5", "1", "400%", "200%", "6", "all 8",
    ]  # fmt: skip
    assert table[4][3:] == ["slow", "0.5", "16", "-", "1", "100%", "50%", "-", "3 of 8 forwards"]
    assert table[5][4:] == ["-", "-", "-", "1", "-", "-", "-", "needs about 99.0 GB, 1.0 GB are free"]
    assert "**No GPU.**" in report.text()
    told = json.loads(report.json())["results"]
    assert [found["seconds"] for found in told] == [4.0, 0.5, 16.0, None]
    assert told[0]["share_of_product_in_use"] == 2.0
    path = save_plot(report.plot(), tmp_path / "plot.svg")
    words = [text.text for text in ET.parse(path).iter(TEXT)]
    assert "Images a second (logarithmic scale), a <fast> & cheap one" in words
    assert "huge" not in words  # nothing to draw


# The commands


@pytest.mark.usefixtures("quick_products")
def test_compare_samplers_writes_table_json_and_plot(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = [entry.name for entry in CONTESTANTS if "pixels" not in entry.name]  # the decoder's size is not a setting
    where = ["--tokens", "6", "--batches", "1", "2", "--minutes", "20", "--out", str(tmp_path)]
    compare_samplers.main([*TINY, *where, "--contestants", *names])
    printed = capsys.readouterr().out
    text, told = ((tmp_path / f"compare_samplers.{suffix}").read_text(encoding="utf-8") for suffix in ("md", "json"))
    assert text in printed
    results = json.loads(told)
    found = {(entry["contestant"], entry["batch"]): entry for entry in results["results"]}
    expected = {"maskgen", "bare forwards", "plain MKL loop", "naive loop", "AR, KV cache", "AR, whole again"}
    for name in expected:
        for batch in (1, 2):
            entry = found[name, batch]
            assert entry["left_out"] == ""
            assert len(entry["walls"]) == len(entry["processor"]) == len(entry["products"]) == 2
            assert entry["measured"] == entry["units"] == (6 if name.startswith("AR") else 2)
            assert entry["images_per_second"] > 0
            assert entry["peak_mb"] is not None
            assert entry["gflop_per_image"] == pytest.approx(found[name, 1]["gflop_per_image"])
            assert f"{name} " in text
    # The unconditional rows of the first step are equal, and run once.
    assert 1.5 < found["maskgen, guided", 2]["flops"] / found["maskgen", 2]["flops"] < 2
    ratios = {(entry["ratio"], entry["batch"]) for entry in results["ratios"]}
    assert ("AR with KV cache over maskgen, the honest figure", 1) in ratios
    labels = [element.text for element in ET.parse(tmp_path / "compare_samplers.svg").iter(TEXT)]
    assert labels.count("naive loop") == 2
    if not torch.cuda.is_available():
        assert compare_samplers.NO_GPU in text
        assert "maskgen, torch.compile" not in {name for name, _ in found}


@pytest.mark.usefixtures("quick_products")
def test_compare_samplers_says_what_did_not_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    where = ["--tokens", "4", "--batches", "1", "--out", str(tmp_path), "--contestants", "maskgen", "naive loop"]
    compare_samplers.main([*TINY, *where, "--minutes", "0"])
    rows = json.loads((tmp_path / "compare_samplers.json").read_text(encoding="utf-8"))["results"]
    assert [entry["contestant"] for entry in rows] == ["maskgen", "naive loop"]
    assert all("1 of 2 forwards take" in entry["left_out"] and entry["walls"] == [] for entry in rows)
    monkeypatch.setattr(comparison, "free_memory", lambda device: 1000)
    compare_samplers.main([*TINY, *where, "--minutes", "20"])
    rows = json.loads((tmp_path / "compare_samplers.json").read_text(encoding="utf-8"))["results"]
    assert all("GB are free" in entry["left_out"] for entry in rows)


@pytest.mark.usefixtures("quick_products")
def test_a_missing_library_is_one_line_and_no_row(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("parts.contestants.is_installed", lambda: False)
    where = ["--tokens", "4", "6", "--batches", "1", "--minutes", "20", "--out", str(tmp_path)]
    compare_samplers.main([*TINY, *where, "--contestants", "maskgen", "aMUSEd loop (diffusers)"])
    printed = capsys.readouterr().out
    text = (tmp_path / "compare_samplers.md").read_text(encoding="utf-8")
    assert text.count("diffusers is not installed (pip install diffusers)") == 1
    assert printed.count("diffusers is not installed") == 2  # at once, and in the report
    assert "| aMUSEd" not in text


@pytest.mark.parametrize(
    "point",
    [
        Point(tokens=6, steps=3, batch=2, codebooks=3),
        Point(tokens=4, steps=1, batch=1, codebooks=1),
        Point(tokens=16, steps=2, batch=5, codebooks=2),
    ],
)
def test_flops_of_a_loop(point: Point) -> None:
    assert meters.counted(work_of(point, MODERN, "meta")) == flops_of(point, MODERN)
    ids = work_of(point, MODERN, "cpu")()
    assert ids.shape == (point.batch, point.tokens, point.codebooks)
    assert 0 <= ids.min() <= ids.max() < 7


def test_curves_stop_where_the_budget_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    points = [Point(tokens=4, steps=1, batch=batch) for batch in (1, 2)]
    curve = measure_curve("batch", points, MODERN, "cpu", budget=600, runs=2)
    assert [measured.point.batch for measured in curve.measured] == [1, 2]
    assert [measured.runs for measured in curve.measured] == [2, 2]
    assert curve.stopped == ""
    none = measure_curve("batch", points, MODERN, "cpu", budget=0, runs=2)
    assert none.measured == []
    assert none.stopped.startswith("before 1: ")
    monkeypatch.setattr(cost_curves, "seconds", lambda work, device: 400.0)
    slow = measure_curve("batch", points, MODERN, "cpu", budget=600, runs=1)
    assert len(slow.measured) == 1
    assert slow.stopped.startswith("before 2: ")
    assert slow.stopped.endswith(" s left")
    monkeypatch.setattr(cost_curves, "free_memory", lambda device: 10)
    assert "GB are free" in measure_curve("batch", points, MODERN, "cpu", budget=600, runs=1).stopped


def test_exponents() -> None:
    def measured(flops: int, wall: float) -> Measured:
        return Measured(point=Point(), flops=flops, wall=wall, processor=wall, runs=1)

    assert exponent([measured(10, 1.0), measured(40, 4.0), measured(90, 9.0)]) == pytest.approx(1)
    assert exponent([measured(10, 1.0), measured(1000, 10.0)]) == pytest.approx(0.5)
    assert exponent([measured(10, 1.0)]) is None
    assert exponent([measured(10, 1.0), measured(10, 2.0)]) is None


def test_cost_curves_writes_tables_json_and_plot(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = ["--width", "24", "--layers", "1", "--heads", "3", "--vocab", "7", "--runs", "1", "--minutes", "20"]
    base = ["--base-tokens", "4", "--steps", "2", "--batch", "1", "--out", str(tmp_path)]
    values = ["--tokens-values", "4", "6", "--steps-values", "1", "2", "--batch-values", "1", "2"]
    cost_curves.main([*sizes, *base, *values, "--codebooks-values", "1", "2"])
    text = (tmp_path / "cost_curves.md").read_text(encoding="utf-8")
    assert text in capsys.readouterr().out
    assert text.count("All points were measured.") == 4
    curves = json.loads((tmp_path / "cost_curves.json").read_text(encoding="utf-8"))["curves"]
    assert [curve["along"] for curve in curves] == ["tokens", "steps", "batch", "codebooks"]
    for curve in curves:
        assert len(curve["measured"]) == 2
        flops = [entry["flops"] for entry in curve["measured"]]
        assert 0 < flops[0] < flops[1]
    words = [text.text for text in ET.parse(tmp_path / "cost_curves.svg").iter(TEXT)]
    assert words.count("measured") == words.count("counted FLOPs at the best pace") == 4
    assert save_plot(cost_curves.plot([]), tmp_path / "none.svg").is_file()


def test_tables_are_even() -> None:
    table = markdown_table(("a", "long"), [("1", "2"), ("333", "4")])
    assert len({len(line) for line in table.splitlines()}) == 1
    assert table.splitlines()[1] == "|-----|------|"
