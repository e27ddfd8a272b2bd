"""Schedules and mask lengths against the official MaskGIT code."""

from pathlib import Path

import pytest
import torch

from maskgen.schedules import get_schedule, mask_counts
from tests.parity.support import check_count, facts, load, recordings

SCHEDULES = recordings("maskgit", "schedules*.safetensors")
LENGTHS = recordings("maskgit", "mask_len_*.safetensors")
COUNTS = facts("maskgit", "mask_counts*.safetensors")


def cases(paths: list[Path], last: str) -> list[tuple[Path, str]]:
    """Every (file, key) of one kind; ``last`` is what the key's last part begins with."""
    return [
        (path, key)
        for path in paths
        for key in load(path)
        if key.split("/")[-1].startswith(last) and not key.startswith("boundary/") and key != "N"
    ]


def case_id(value: object) -> str:
    return value.stem if isinstance(value, Path) else str(value)


VALUES = cases(SCHEDULES, "N")
STEPS = cases(LENGTHS, "T") + cases(LENGTHS, "start")


def test_cases_are_found() -> None:
    check_count("maskgit", VALUES, 2)
    assert {path for path, _ in STEPS} == set(LENGTHS)
    assert COUNTS


@pytest.mark.parametrize(("path", "key"), VALUES, ids=case_id)
def test_schedule_values(path: Path, key: str) -> None:
    _, method, count = key.split("/")
    stored = load(path)
    ratios = stored["ratios"]
    total = torch.full(ratios.shape, int(count.removeprefix("N")))
    gamma = get_schedule(method)(ratios, total)
    # README: pow, log and exp depend on the library's pow and log2.
    atol = 1e-6 if method.startswith("pow") or method in ("log", "exp") else 2e-7
    torch.testing.assert_close(gamma, stored[key], atol=atol, rtol=0)


@pytest.mark.parametrize(("path", "key"), STEPS, ids=case_id)
def test_mask_lengths(path: Path, key: str) -> None:
    stored = load(path)
    parts = key.split("/")
    method = parts[0] if len(parts) == 3 else "cosine"
    steps = next(int(part[1:]) for part in parts if part[0] == "T" and part[1:].isdigit())
    start = int(parts[-1].removeprefix("start")) if len(parts) == 3 else 0
    expected, total = stored[key].long(), stored["N"].long()
    assert expected.shape == (steps - start, len(total))
    unknown, compared = total, 0
    for row, step in enumerate(range(start, steps)):
        counts = mask_counts(get_schedule(method).at_step(step, steps, total), total, unknown)
        defined = expected[row] >= 0  # -1: the official value is NaN (log schedule, one token, ratio 1) and never used
        assert method == "log" or defined.all()
        assert torch.equal(counts[defined], expected[row][defined]), f"step {step}"
        compared += int(defined.sum())
        # No ties here: what is masked after a step is what is masked in the next.
        unknown = torch.where(defined, expected[row], counts)
    assert compared >= len(total)


@pytest.mark.parametrize("path", COUNTS, ids=case_id)
def test_planned_counts(path: Path) -> None:
    """What the compiled official loop keeps masked before its bounds, for every schedule, number of steps and size."""
    stored = load(path)
    total = stored.pop("hidden_at_start").long()
    assert stored
    for key, expected in stored.items():
        method, steps = key.split("/")
        assert len(expected) == int(steps)
        gamma = get_schedule(method)
        for step, planned in enumerate(expected.long()):
            counts = torch.floor(total.float() * gamma.at_step(step, int(steps), total)).long()
            assert torch.equal(counts, planned), f"{key} step {step}"
