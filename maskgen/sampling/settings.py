"""How tokens are decided: the settings a model brings and a call may change."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal, get_args

from maskgen.sampling.filters import TokenFilter
from maskgen.sampling.guidance import GuidanceRamp, guidance_weight
from maskgen.sampling.selectors.named import NEEDS_CRITIC, check_selector
from maskgen.sampling.temperatures import Temperature, choice_weights, temperatures
from maskgen.schedules import get_schedule

__all__ = ["GuidanceFrom", "Loop", "Sampling"]

Loop = Literal["maskgit", "halton", "onedtok", "maskbit", "vampnet", "codebook", "commit"]

GuidanceFrom = Literal["unconditional", "label", "self"]


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How tokens are decided; see ``maskgen.sampling.sample`` and ``maskgen.sampling.guidance``.

    Attributes:
        sampler: which loop, see ``maskgen.published.loops``: ``maskgit`` is ours and the official one; the others belong to
            the weights of their groups and ignore the fields they do not have (``halton`` has no schedule, order or
            choice temperature; ``onedtok`` and ``maskbit`` have no order and always use arccos). Sound has two more:
            ``vampnet`` ranks the cells of all codebooks together (cosine, by confidence), ``codebook`` decides one codebook
            after the other. Video's ``commit`` (MAGVIT) takes known tokens for a draft and decides them, too, by confidence.
        steps: parallel decoding steps; of each codebook where the sampler is ``codebook``.
        schedule: masking schedule.
        select: order in which places are decided, by ``maskgit`` and ``codebook``: ``confidence``, ``random``, ``halton``,
            ``moment``, ``critic``, ``self-critic``, ``entropy``, ``remdm-cap`` and others, see docs/samplers.md.
        temperature: of the token draw; with ``maskgit`` also a course over the steps as ``linear:1.2,0.8``, see
            ``maskgen.sampling.temperatures``.
        choice_temperature: of the ranking noise; lower is safer and less varied. VampNet's mask temperature is this (10.5).
            A number falls to 0 over the steps; with ``maskgit`` also another course, as above.
        guidance: guidance scale, 0 = none.
        guidance_ramp: how the scale grows over the steps, see ``maskgen.sampling.guidance.guidance_weight``.
        guidance_power: exponent of the ramp ``power-cosine``, and of ``cosine`` with ``onedtok`` and ``maskbit``.
        guidance_interval: the part of the progress, in [0, 1], that is guided at all; this and the next three are for the
            samplers ``maskgit``, ``halton``, ``vampnet`` and ``codebook``, this one for ``commit`` as well.
        guidance_from: what the guidance pushes away from: the prediction without a class (``unconditional``), that for the
            class ``negative_label`` (``label``), or that of the same model which sees fewer decided tokens (``self``).
        negative_label: a class number, for ``guidance_from: label``.
        guidance_drop: share of the visible tokens that ``guidance_from: self`` hides.
        annealed: whether ``onedtok`` and ``maskbit`` sharpen the logits step by step; ``codebook`` lets its temperature fall
            over the steps of each codebook.
        top_k: draw from the so many most likely tokens; see ``maskgen.sampling.filters`` for this and the next three,
            which work with every sampler. They come before the temperature, with ``codebook`` after it.
        top_p: draw from the most likely tokens of so much probability.
        typical_mass: draw from the most typical tokens of so much probability.
        typical_min_tokens: keep so many typical tokens at least.
        sample_cutoff: share of the steps after which ``vampnet`` takes the most likely tokens.
        batch_counts: whether ``vampnet`` plans from the whole batch, as official; then items depend on their batch.
        compile: run the model through ``torch.compile``, which takes a minute when a number of rows is first seen; see
            docs/samplers.md for this and the next two, and ``maskgen.sampling.speed.compiled``.
        bfloat16: run the model in bf16, with float32 logits: other samples, of the same quality.
        reuse: with ``maskgit``, compute all places only every so many steps; 1 is exact, see
            ``maskgen.sampling.speed.prediction.Prediction.reusing``.
        codebook_steps: steps of each codebook where the sampler is ``codebook``, as (20, 10, 10, 10); () means ``steps`` for
            each.
    """

    sampler: Loop = "maskgit"
    steps: int = 8
    schedule: str = "cosine"
    select: str = "confidence"
    temperature: Temperature = 1.0
    choice_temperature: Temperature = 4.5
    guidance: float = 0.0
    guidance_ramp: GuidanceRamp = "constant"
    guidance_power: float = 3.0
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    guidance_from: GuidanceFrom = "unconditional"
    negative_label: int | None = None
    guidance_drop: float = 0.3
    annealed: bool = False
    top_k: int | None = None
    top_p: float | None = None
    typical_mass: float | None = None
    typical_min_tokens: int = 64
    sample_cutoff: float = 1.0
    batch_counts: bool = False
    compile: bool = False
    bfloat16: bool = False
    reuse: int = 1
    codebook_steps: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        get_schedule(self.schedule)
        check_selector(self.select)
        self._check_guidance()
        temperatures(self.temperature, 1)
        choice_weights(self.choice_temperature, 1)
        self.keep()
        if self.sampler not in get_args(Loop):
            raise ValueError(
                f"sampler: got {self.sampler!r}, expected 'maskgit', 'halton', 'onedtok' or 'maskbit'; or, for several "
                "codebooks, 'vampnet' or 'codebook'; for video, 'commit'"
            )
        if self.steps < 1:
            raise ValueError(f"steps: got {self.steps}, expected at least 1")
        if self.reuse < 1:
            raise ValueError(f"reuse: got {self.reuse}, expected at least 1 (every step computes all places)")
        if any(steps < 1 for steps in self.codebook_steps):
            raise ValueError(
                f"codebook_steps: got {self.codebook_steps}, expected numbers of at least 1, one a codebook"
            )
        for name in ("guidance", "guidance_power", "sample_cutoff"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"{name}: got {getattr(self, name)}, expected a finite number of 0 or more")
        if self.sampler != "maskgit":
            self._check_other_loops()

    def _check_guidance(self) -> None:
        guidance_weight(self.guidance_ramp, 0.0, 0, 1)
        first, last = self.guidance_interval
        if not 0 <= first <= last <= 1:
            raise ValueError(f"guidance_interval: got {self.guidance_interval}, expected 0 <= first <= last <= 1")
        if self.guidance_from not in get_args(GuidanceFrom):
            raise ValueError(f"guidance_from: got {self.guidance_from!r}, expected 'unconditional', 'label' or 'self'")
        if (self.guidance_from == "label") == (self.negative_label is None):
            raise ValueError(
                f"negative_label: got {self.negative_label} with guidance_from {self.guidance_from!r}, expected a class "
                "number with 'label', and none with the others"
            )
        if not 0 < self.guidance_drop <= 1:
            raise ValueError(f"guidance_drop: got {self.guidance_drop}, expected a share over 0, at most 1")

    def _check_other_loops(self) -> None:
        """What only maskgen's own loop can do is refused with the others."""
        if self.select in NEEDS_CRITIC:
            raise ValueError(
                f"select: {self.select!r} works with the sampler 'maskgit' only, got sampler {self.sampler!r}"
            )
        if self.reuse > 1:
            raise ValueError(
                f"reuse: got {self.reuse} with the sampler {self.sampler!r}, works with 'maskgit' only; use 1"
            )
        for name in ("temperature", "choice_temperature"):
            if isinstance(getattr(self, name), str):
                raise ValueError(
                    f"{name}: got {getattr(self, name)!r}, which works with the sampler 'maskgit' only; give a number with "
                    f"{self.sampler!r}"
                )

    def number(self, name: Literal["temperature", "choice_temperature"]) -> float:
        """A temperature, for the loops that only take numbers."""
        value: Temperature = getattr(self, name)
        assert not isinstance(value, str), "refused when the settings were made"
        return value

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
