"""One run at a time in a folder, and stopping it from outside.

SIGINT or SIGTERM makes all processes finish the step and save.
"""

import contextlib
import signal
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import torch
from accelerate import Accelerator
from filelock import FileLock, Timeout
from torch import Tensor, distributed
from tqdm import tqdm

from maskgen.training.distributed.whole_batch import mean_over_processes


class Interrupted(Exception):  # noqa: N818 (not an error: the run was told to stop and saved itself)
    """Training was told to stop (Ctrl-C or SIGTERM) and has saved a checkpoint; start it again to go on."""


class StopRequest:
    """Whether to stop, as all processes agree.

    On several processes the answer is one step old: it is summed while the next step computes, so nothing waits for it.

    Args:
        device: of the process group's tensors.
    """

    def __init__(self, device: torch.device) -> None:
        self.received: list[int] = []
        self._device = device
        self._asked: Tensor | None = None
        self._many = distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1

    def agreed(self) -> bool:
        """Ask once a step, on every process."""
        if not self._many:
            return bool(self.received)
        before, self._asked = self._asked, torch.tensor(float(bool(self.received)), device=self._device)
        distributed.all_reduce(self._asked)
        return before is not None and bool(before.item())


@contextlib.contextmanager
def stop_signals(device: torch.device) -> Iterator[StopRequest]:
    """A request that is made when SIGINT or SIGTERM arrives inside the block."""
    request = StopRequest(device)

    def note(number: int, frame: FrameType | None) -> None:
        request.received.append(number)

    previous = {}
    with contextlib.suppress(ValueError):  # signals can be set in the main thread only; elsewhere the caller stops us
        previous = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield request
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


PATIENCE = 60.0  # seconds: what a run that was told to stop may need for its last step and checkpoint


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
