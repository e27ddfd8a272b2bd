"""Freed memory stays with the process inside ``kept_heap`` and goes back after it.

What is measured is measured in a young process: old heaps have holes of any size.
"""

import resource
import sys
from pathlib import Path

import pytest
import torch

import maskgen.training.heap
from maskgen.training.heap import kept_heap
from tests.core.training.many_processes import run_processes

PAGE = resource.getpagesize()
BYTES = 96 * 2**20

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="a setting of glibc")


def faults_of_reuse() -> int:
    """Pages the system hands out while a tensor of 96 MiB is made and dropped four times.

    The first ones do not count: glibc needs holes that fit, which aligned blocks of one size leave only after a while.
    """
    for _ in range(8):
        torch.zeros(BYTES // 4)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(4):
        torch.zeros(BYTES // 4)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def resident() -> int:
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * PAGE


def keep_and_give_back(fail: bool) -> None:
    held = 0
    try:
        with kept_heap():
            inside = faults_of_reuse()
            held = resident()
            if fail:
                raise KeyError
    except KeyError:
        assert fail
    assert inside < BYTES // PAGE // 10
    assert resident() < held - BYTES // 2


@pytest.mark.parametrize("fail", [False, True])
def test_pages_are_used_again_and_given_back(fail: bool, tmp_path: Path) -> None:
    said = tmp_path / "said"
    assert run_processes(1, keep_and_give_back, fail, said=said) == [0], said.read_text(encoding="utf-8")


def test_other_devices_and_other_systems_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(maskgen.training.heap, "_glibc", asked.append)  # finds nothing, as elsewhere
    with kept_heap("cuda"):
        assert asked == []
    with kept_heap():
        assert asked == ["mallopt"]
    assert asked == ["mallopt"]
