"""Steps that must not count: a loss or a gradient that is not finite, or a gradient far larger than usual.

Such a step leaves weights and optimiser as they were. All is decided on the device and nothing is read back, so a GPU never
waits: the optimiser's fused kernel takes the verdict as a number. Its state is in the checkpoints, so a resumed run skips
the same steps.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, distributed, nn


@dataclass(frozen=True, kw_only=True)
class GuardSettings:
    """Which steps are skipped, and when a run gives up; see ``maskgen.training.optim.guard``.

    A step is always skipped when its loss or its gradient norm is not finite.

    Attributes:
        max_consecutive_skips: this many steps skipped one after the other stop the run; so do more than half of its steps.
        spike: skip also a gradient norm above this multiple of the median of the last good ones; 0 = never. No published
            recipe does this, so it is off; 10 leaves ordinary training alone.
        window: how many good norms the median is taken of; half of them must be there before anything counts as a spike.
    """

    max_consecutive_skips: int = 20
    spike: float = 0.0
    window: int = 128

    def __post_init__(self) -> None:
        if self.max_consecutive_skips < 1 or self.window < 2:
            raise ValueError(
                f"guard: got max_consecutive_skips {self.max_consecutive_skips} and window {self.window}, expected 1 and "
                "2 or more"
            )
        if self.spike and self.spike <= 1:
            raise ValueError(f"guard.spike: got {self.spike}, expected a multiple above 1, or 0 for never")


class Guard(nn.Module):
    """Decides which steps of one network count; its buffers are what a resumed run needs.

    Args:
        settings: see ``GuardSettings``.
    """

    norms: Tensor
    good: Tensor
    skipped: Tensor
    in_a_row: Tensor
    longest_streak: Tensor

    def __init__(self, settings: GuardSettings) -> None:
        super().__init__()
        self.settings = settings
        self.register_buffer("norms", torch.full((settings.window,), torch.inf))
        for name in ("good", "skipped", "in_a_row", "longest_streak"):
            self.register_buffer(name, torch.zeros((), dtype=torch.long))

    @torch.no_grad()
    def check(self, loss: Tensor, norm: Tensor) -> Tensor:
        """Whether to skip the step: float32 scalar, 1 = skip, the same on every process.

        Args:
            loss: of this step, of this process.
            norm: of the gradient, the same on every process.
        """
        norm = norm.detach().float()
        bad = ~(loss.detach().isfinite() & norm.isfinite())
        if self.settings.spike:
            bad = bad | self._is_spike(norm)
        verdict = bad.float()
        if distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1:
            distributed.all_reduce(verdict, op=distributed.ReduceOp.MAX)
        bad = verdict > 0
        self._remember(norm, bad)
        return verdict

    def _is_spike(self, norm: Tensor) -> Tensor:
        """Above ``spike`` times the median of the last good norms, once there are half a window of them."""
        window = self.settings.window
        filled = self.good.clamp(max=window)
        # Places not filled yet are infinite and sort behind all others.
        median = self.norms.sort().values.gather(0, ((filled - 1) // 2).clamp(min=0)[None])[0]
        return (filled >= (window + 1) // 2) & (norm > self.settings.spike * median)

    def _remember(self, norm: Tensor, bad: Tensor) -> None:
        # A gradient of exactly zero (a discriminator before its game begins) says nothing about the usual size.
        counts = ~bad & (norm > 0)
        if self.settings.spike:
            place = torch.arange(self.settings.window, device=norm.device) == self.good % self.settings.window
            self.norms.copy_(torch.where(place & counts, norm, self.norms))
        self.good += counts
        self.skipped += bad
        self.in_a_row.copy_((self.in_a_row + 1) * bad)
        self.longest_streak.copy_(torch.maximum(self.longest_streak, self.in_a_row))

    def too_many(self) -> bool:
        """Whether the run must stop. Reads from the device: ask now and then."""
        return int(self.longest_streak) >= self.settings.max_consecutive_skips
