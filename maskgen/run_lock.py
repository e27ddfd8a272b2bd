"""One run at a time in a folder: a second one would mix its log and its checkpoints with the first one's."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import torch
from accelerate import Accelerator
from filelock import FileLock, Timeout
from tqdm import tqdm

from maskgen.distributed import mean_over_processes

__all__ = ["alone_in"]

PATIENCE = 60.0  # seconds: what a run that was asked to stop may need for its last step and checkpoint


@contextlib.contextmanager
def alone_in(folder: Path, accelerator: Accelerator) -> Iterator[None]:
    """Hold the folder inside the block, against other runs on machines that see it; to be entered by every process.

    The system gives the folder back when a process ends, however it ends. File systems without locks are not guarded.

    Raises:
        ValueError: another run has the folder and keeps it for a minute.
    """
    lock = FileLock(folder / ".lock")
    taken = accelerator.is_main_process and not _acquired(lock, folder)
    try:
        if mean_over_processes(torch.tensor(float(taken), device=accelerator.device)).item() > 0:
            raise ValueError(
                f"{folder}: another run trains into this folder (it may have outlived its launcher); stop it or wait "
                "for it, then the same command goes on, or name another folder"
            )
        yield
    finally:
        lock.release()


def _acquired(lock: FileLock, folder: Path) -> bool:
    try:
        with contextlib.suppress(Timeout):
            lock.acquire(timeout=0)
            return True
        tqdm.write(f"{folder}: another run still trains into this folder; waiting {PATIENCE:.0f} s for its end")
        lock.acquire(timeout=PATIENCE)
    except Timeout:
        return False
    except (NotImplementedError, OSError):  # a file system without locks
        return True
    return True
