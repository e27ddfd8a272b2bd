"""How tokens are decided: the settings a model brings and a call may change."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal, get_args

from maskgen.filters import TokenFilter
from maskgen.guidance import GuidanceRamp, guidance_weight
from maskgen.schedules import get_schedule
from maskgen.selectors import get_selector

__all__ = ["Loop", "Sampling"]

Loop = Literal["maskgit", "halton", "onedtok", "maskbit", "vampnet", "codebook"]


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How tokens are decided; see ``maskgen.sampler.sample`` and ``maskgen.guidance``.

    Attributes:
        sampler: which loop, see ``maskgen.tasks.samplers``: ``maskgit`` is ours and the official one; the others belong to
            the weights of their groups and ignore the fields they do not have (``halton`` has no schedule, order or
            choice temperature; ``onedtok`` and ``maskbit`` have no order and always use arccos). Sound has two more:
            ``vampnet`` ranks the cells of all codebooks together (cosine, by confidence), ``codebook`` decides one codebook
            after the other.
        steps: parallel decoding steps; of each codebook where the sampler is ``codebook``.
        schedule: masking schedule.
        select: order, ``confidence``, ``random`` or spans as ``span3``, see ``maskgen.selectors.get_selector``.
        temperature: of the token draw.
        choice_temperature: of the ranking noise; lower is safer and less varied. VampNet's mask temperature is this (10.5).
        guidance: classifier-free guidance scale, 0 = none.
        guidance_ramp: how the scale grows over the steps.
        guidance_power: exponent of the ``cosine`` ramp of ``onedtok`` and ``maskbit``.
        annealed: whether ``onedtok`` and ``maskbit`` sharpen the logits step by step; ``codebook`` lets its temperature fall
            over the steps of each codebook.
        top_k: draw from the so many most likely tokens; see ``maskgen.filters`` for this and the next three, which work with
            every sampler. They come before the temperature, with ``codebook`` after it.
        top_p: draw from the most likely tokens of so much probability.
        typical_mass: draw from the most typical tokens of so much probability.
        typical_min_tokens: keep so many typical tokens at least.
        sample_cutoff: share of the steps after which ``vampnet`` takes the most likely tokens.
        batch_counts: whether ``vampnet`` plans from the whole batch, as official; then items depend on their batch.
        codebook_steps: steps of each codebook where the sampler is ``codebook``, as (20, 10, 10, 10); () means ``steps`` for
            each.
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
    top_k: int | None = None
    top_p: float | None = None
    typical_mass: float | None = None
    typical_min_tokens: int = 64
    sample_cutoff: float = 1.0
    batch_counts: bool = False
    codebook_steps: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        get_schedule(self.schedule)
        get_selector(self.select)
        guidance_weight(self.guidance_ramp, 0.0, 0, 1)
        self.keep()
        if self.sampler not in get_args(Loop):
            raise ValueError(
                f"sampler: got {self.sampler!r}, expected 'maskgit', 'halton', 'onedtok' or 'maskbit'; or, for several "
                "codebooks, 'vampnet' or 'codebook'"
            )
        if self.steps < 1:
            raise ValueError(f"steps: got {self.steps}, expected at least 1")
        if any(steps < 1 for steps in self.codebook_steps):
            raise ValueError(
                f"codebook_steps: got {self.codebook_steps}, expected numbers of at least 1, one a codebook"
            )
        for name in ("temperature", "choice_temperature", "guidance", "guidance_power", "sample_cutoff"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"{name}: got {getattr(self, name)}, expected a finite number of 0 or more")

    def keep(self) -> TokenFilter | None:
        """The filter of the draw, or None if there is none."""
        chosen = TokenFilter(
            top_k=self.top_k,
            top_p=self.top_p,
            typical_mass=self.typical_mass,
            typical_min_tokens=self.typical_min_tokens,
        )
        return chosen if (self.top_k, self.top_p, self.typical_mass) != (None, None, None) else None

    def override(self, **changes: Any) -> Sampling:
        """A copy with every change that is not None."""
        return dataclasses.replace(self, **{name: value for name, value in changes.items() if value is not None})
