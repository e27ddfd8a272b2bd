"""How tokens are decided: the settings a model brings and a call may change."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

from maskgen.guidance import GuidanceRamp, guidance_weight
from maskgen.schedules import get_schedule
from maskgen.selectors import get_selector

__all__ = ["Loop", "Sampling"]

Loop = Literal["maskgit", "halton", "onedtok", "maskbit"]


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How tokens are decided; see ``maskgen.sampler.sample`` and ``maskgen.guidance``.

    Attributes:
        sampler: which loop, see ``maskgen.tasks.samplers``: ``maskgit`` is ours and the official one; the others belong to
            the weights of their groups and ignore the fields they do not have (``halton`` has no schedule, order or
            choice temperature; ``onedtok`` and ``maskbit`` have no order and always use arccos).
        steps: parallel decoding steps.
        schedule: masking schedule.
        select: order, ``confidence`` or ``random``.
        temperature: of the token draw.
        choice_temperature: of the ranking noise; lower is safer and less varied.
        guidance: classifier-free guidance scale, 0 = none.
        guidance_ramp: how the scale grows over the steps.
        guidance_power: exponent of the ``cosine`` ramp of ``onedtok`` and ``maskbit``.
        annealed: whether ``onedtok`` and ``maskbit`` sharpen the logits step by step.
    """

    sampler: Loop = "maskgit"
    steps: int = 8
    schedule: str = "cosine"
    select: str = "confidence"
    temperature: float = 1.0
    choice_temperature: float = 4.5
    guidance: float = 0.0
    guidance_ramp: GuidanceRamp = "constant"
    guidance_power: float = 3.0
    annealed: bool = False

    def __post_init__(self) -> None:
        get_schedule(self.schedule)
        get_selector(self.select)
        guidance_weight(self.guidance_ramp, 0.0, 0, 1)
        if self.sampler not in ("maskgit", "halton", "onedtok", "maskbit"):
            raise ValueError(f"sampler: got {self.sampler!r}, expected 'maskgit', 'halton', 'onedtok' or 'maskbit'")
        if self.steps < 1:
            raise ValueError(f"steps: got {self.steps}, expected at least 1")
        for name in ("temperature", "choice_temperature", "guidance", "guidance_power"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"{name}: got {getattr(self, name)}, expected a finite number of 0 or more")

    def override(self, **changes: Any) -> Sampling:
        """A copy with every change that is not None."""
        return dataclasses.replace(self, **{name: value for name, value in changes.items() if value is not None})
