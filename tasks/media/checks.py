"""What files and tensors of every kind are checked for, with one clear line for each mistake."""

from pathlib import Path

import torch
from torch import Tensor


def check_file(path: Path, kind: str) -> None:
    """Refuse what cannot be read.

    Args:
        path: the file.
        kind: as errors call it, such as ``a sound file``.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a folder, a pipe, or an empty file.
    """
    if path.is_dir():
        raise ValueError(f"{path}: got a folder, expected {kind}")
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file, expected {kind}")
    if not path.is_file():
        raise ValueError(
            f"{path}: got a pipe or a device, expected {kind}, which is read in parts; save it to a file first"
        )
    if path.stat().st_size == 0:
        raise ValueError(f"{path}: got an empty file, expected {kind}")


def to_bytes(signal: Tensor, name: str, axes: str) -> Tensor:
    """Pictures or clips as uint8: clamped, rounded to nearest.

    Args:
        signal: float ``[B, 3, ...]``, nominally in [0, 1].
        name: how errors call it.
        axes: names of its axes, such as ``B, 3, H, W``.

    Raises:
        ValueError: another shape, or values that are not finite.
    """
    if signal.ndim != len(axes.split(", ")) or signal.shape[1] != 3:
        raise ValueError(f"{name}: got shape {tuple(signal.shape)}, expected [{axes}]")
    if not torch.isfinite(signal).all():
        raise ValueError(f"{name}: got values that are not finite, expected numbers in [0, 1]; is the model damaged?")
    return (signal.detach().float().clamp(0, 1) * 255).round().to(torch.uint8)
