"""Freed memory stays with the process inside ``kept_heap`` and goes back after it."""

import resource
import sys
from pathlib import Path

import pytest
import torch

from maskgen.heap import kept_heap

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


def test_pages_are_used_again_and_given_back() -> None:
    with kept_heap():
        inside = faults_of_reuse()
        held = resident()
    assert inside < BYTES // PAGE // 10
    assert resident() < held - BYTES // 2


def test_an_error_inside_gives_it_back_too() -> None:
    held = 0

    def work() -> None:
        nonlocal held
        faults_of_reuse()
        held = resident()
        raise KeyError

    with pytest.raises(KeyError), kept_heap():
        work()
    assert resident() < held - BYTES // 2


def test_other_devices_are_left_alone() -> None:
    with kept_heap():
        pass
    before = resident()
    with kept_heap("cuda"):
        faults_of_reuse()
        assert resident() < before + BYTES // 2
