"""Noise in the layout of CIFAR-10's binary version."""

from pathlib import Path

import numpy as np


def records(count: int, seed: int) -> bytes:
    draw = np.random.default_rng(seed)
    rows = draw.integers(0, 256, (count, 3073), dtype=np.uint8)
    rows[:, 0] = np.arange(count) % 10
    return rows.tobytes()


def binary(folder: Path, each: int = 10) -> Path:
    """A folder of five training files of so many images each, and a test file of twice as many."""
    folder.mkdir(parents=True)
    for number in range(1, 6):
        (folder / f"data_batch_{number}.bin").write_bytes(records(each, number))
    (folder / "test_batch.bin").write_bytes(records(2 * each, 9))
    return folder
