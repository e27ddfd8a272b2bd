"""Stopping a run from outside: SIGINT or SIGTERM on any process makes all of them finish the same step and save."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType

import torch
from torch import distributed

__all__ = ["Interrupted", "StopRequest", "stop_signals"]


class Interrupted(Exception):  # noqa: N818 (not an error: the run was asked to stop and saved itself)
    """Training was asked to stop (Ctrl-C or SIGTERM) and has saved a checkpoint; start it again to go on."""


class StopRequest:
    """Whether to stop, as all processes agree.

    On several processes the answer is one step old: it is summed while the next step computes, so nothing waits for it.

    Args:
        device: of the process group's tensors.
    """

    def __init__(self, device: torch.device) -> None:
        self.received: list[int] = []
        self._device = device
        self._asked: torch.Tensor | None = None
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
