"""How tokens are decided: the settings a model brings and a call may change."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, get_args

from maskgen.sampling.checks import check_numbers
from maskgen.sampling.filters import TokenFilter
from maskgen.sampling.guidance import Guidance
from maskgen.sampling.layers import Layer
from maskgen.sampling.selectors.named import NEEDS_CRITIC, check_selector
from maskgen.sampling.temperatures import Temperature, choice_weights, temperatures
from maskgen.schedules import get_schedule

Loop = Literal["maskgit", "halton", "onedtok", "maskbit", "amused", "openmuse", "muse", "vampnet", "codebook", "commit"]


@dataclass(frozen=True, kw_only=True)
class Speed(Layer):
    """What makes sampling faster and changes samples, see docs/samplers.md; what changes none is always on.

    Attributes:
        reuse: with the sampler ``maskgit``, compute all positions only every so many steps; 1 is exact, see
            ``maskgen.sampling.speed.query.PartialLogits.reusing``.
        compile: run the model through ``torch.compile``, which takes a minute when a number of rows is first seen; see
            ``maskgen.sampling.speed.compiled`` for this and the next one.
        bfloat16: run the model in bf16, with float32 logits: other samples, of the same quality.
    """

    reuse: int = 1
    compile: bool = False
    bfloat16: bool = False

    def __post_init__(self) -> None:
        if self.reuse < 1:
            raise ValueError(f"speed.reuse: got {self.reuse}, expected at least 1 (every step computes all positions)")


@dataclass(frozen=True, kw_only=True)
class VampNetChoices(Layer):
    """What only the sampler ``vampnet`` has.

    Attributes:
        sample_cutoff: share of the steps after which the most likely tokens are taken.
        batch_counts: whether steps are planned from the whole batch, as official; then items depend on their batch.
    """

    sample_cutoff: float = 1.0
    batch_counts: bool = False

    def __post_init__(self) -> None:
        check_numbers(sample_cutoff=self.sample_cutoff)


@dataclass(frozen=True, kw_only=True)
class AmusedChoices(Layer):
    """What only the samplers ``amused`` and ``openmuse`` have.

    Attributes:
        counts: the tokens that the schedule counts: those masked in each row at the start (``row``); as many as are masked
            in a row of the batch on average (``batch``, published inpainting; then items depend on their batch); or ``all``,
            as published without inpainting, where few masked tokens are then decided in the last steps.
        rehides: whether given tokens may be masked and decided anew, as published: where little or nothing is masked, or
            where the noise is strong.
    """

    counts: Literal["row", "batch", "all"] = "row"
    rehides: bool = False

    def __post_init__(self) -> None:
        if self.counts not in ("row", "batch", "all"):
            raise ValueError(f"amused.counts: got {self.counts!r}, expected 'row', 'batch' or 'all'")


@dataclass(frozen=True, kw_only=True)
class Sampling(Layer):
    """How tokens are decided; see ``maskgen.sampling.sample`` and docs/samplers.md.

    Attributes:
        sampler: which loop, see ``maskgen.published.loops``: ``maskgit`` is ours and the official one; the others belong to
            the weights of their groups and ignore the fields they do not have (``halton`` has no schedule, order or choice
            temperature; ``onedtok`` and ``maskbit`` have no order and always use arccos; ``amused``, which is Meissonic's,
            too, and ``openmuse`` have no order and few schedules; ``muse``, which is lucidrains', has no ranking noise but
            that of a critic). Sound has two more: ``vampnet`` ranks the tokens of all codebooks together (cosine, by
            confidence), ``codebook`` decides one codebook after the other. Video's ``commit`` (MAGVIT) takes given tokens
            for a draft and decides them, too, by confidence.
        steps: parallel decoding steps; of each codebook where the sampler is ``codebook``.
        schedule: masking schedule.
        select: order in which tokens are decided, by ``maskgit`` and ``codebook``: a name of
            ``maskgen.sampling.selectors.named.SELECTORS``.
        temperature: of the sampled tokens; with ``maskgit`` also a course over the steps as ``linear:1.2,0.8``, see
            ``maskgen.sampling.temperatures``.
        choice_temperature: of the ranking noise; lower is safer and less varied. VampNet's mask temperature is this (10.5).
            A number falls to 0 over the steps; with ``maskgit``, ``amused`` and ``openmuse`` also another course.
        guidance: see ``Guidance``; ``interval`` and ``against`` are for the samplers ``maskgit``, ``halton``, ``vampnet``
            and ``codebook``, the interval for ``commit`` as well.
        filter: which tokens may be sampled, with every sampler. It comes before the temperature, with ``codebook`` after it.
        speed: see ``Speed``.
        annealed: whether ``onedtok`` and ``maskbit`` sharpen the logits step by step; ``codebook`` lets its temperature fall
            over the steps of each codebook.
        codebook_steps: steps of each codebook where the sampler is ``codebook``, as (20, 10, 10, 10); () means ``steps`` for
            each.
        vampnet: see ``VampNetChoices``.
        amused: see ``AmusedChoices``.
    """

    sampler: Loop = "maskgit"
    steps: int = 8
    schedule: str = "cosine"
    select: str = "confidence"
    temperature: Temperature = 1.0
    choice_temperature: Temperature = 4.5
    guidance: Guidance = field(default_factory=Guidance)
    filter: TokenFilter = field(default_factory=TokenFilter)
    speed: Speed = field(default_factory=Speed)
    annealed: bool = False
    codebook_steps: tuple[int, ...] = ()
    vampnet: VampNetChoices = field(default_factory=VampNetChoices)
    amused: AmusedChoices = field(default_factory=AmusedChoices)

    former_names: ClassVar[Mapping[str, str]] = {
        "guidance": "guidance.scale",
        **{f"guidance_{name}": f"guidance.{name}" for name in ("ramp", "power", "interval", "drop")},
        "guidance_from": "guidance.against",
        "negative_label": "guidance.negative_label",
        **{name: f"filter.{name}" for name in ("top_k", "top_p", "typical_mass", "typical_min_tokens")},
        **{name: f"speed.{name}" for name in ("reuse", "compile", "bfloat16")},
        **{name: f"vampnet.{name}" for name in ("sample_cutoff", "batch_counts")},
    }
    """What fields were called before they were grouped; ``guidance`` was a number."""

    def __post_init__(self) -> None:
        get_schedule(self.schedule)
        check_selector(self.select)
        temperatures(self.temperature, 1)
        choice_weights(self.choice_temperature, 1)
        if self.sampler not in get_args(Loop):
            raise ValueError(
                f"sampler: got {self.sampler!r}, expected 'maskgit', 'halton', 'onedtok' or 'maskbit'; or, for text, "
                "'amused', 'openmuse' or 'muse'; for several codebooks, 'vampnet' or 'codebook'; for video, 'commit'"
            )
        if self.steps < 1:
            raise ValueError(f"steps: got {self.steps}, expected at least 1")
        if any(steps < 1 for steps in self.codebook_steps):
            raise ValueError(
                f"codebook_steps: got {self.codebook_steps}, expected numbers of at least 1, one a codebook"
            )
        if self.sampler != "maskgit":
            self._check_other_loops()

    def _check_other_loops(self) -> None:
        """What only maskgen's own loop can do is refused with the others."""
        if self.select in NEEDS_CRITIC and (self.sampler, self.select) != ("muse", "critic"):
            raise ValueError(
                f"select: {self.select!r} works with the sampler 'maskgit' only, got sampler {self.sampler!r}"
            )
        if self.speed.reuse > 1:
            raise ValueError(
                f"speed.reuse: got {self.speed.reuse} with the sampler {self.sampler!r}, works with 'maskgit' only; use 1"
            )
        courses = self.sampler in ("amused", "openmuse")
        for name in ("temperature",) if courses else ("temperature", "choice_temperature"):
            if isinstance(getattr(self, name), str):
                raise ValueError(
                    f"{name}: got {getattr(self, name)!r}, which works with the sampler 'maskgit' only; give a number with "
                    f"{self.sampler!r}"
                )

    def over(self, below: Sampling) -> Sampling:
        """See ``Layer``; steps that are named count for every codebook, unless theirs are named, too."""
        made = super().over(below)
        if self.names("steps") and not self.names("codebook_steps") and made.sampler == "codebook":
            made = Sampling(codebook_steps=()).over(made)
        return made

    def number(self, name: Literal["temperature", "choice_temperature"]) -> float:
        """A temperature, for the loops that only take numbers."""
        value: Temperature = getattr(self, name)
        assert not isinstance(value, str), "refused when the settings were made"
        return value

    def override(self, *, guidance: float | None = None, **changes: Any) -> Sampling:
        """A copy with every change that is not None; ``guidance`` is its scale."""
        changes = {name: value for name, value in changes.items() if value is not None}
        if guidance is not None:
            changes["guidance"] = Guidance(scale=guidance)
        return Sampling(**changes).over(self)


def current_sampling(values: Any) -> Any:
    """Saved settings with the keys of today: those of before, all side by side, go into their groups.

    Args:
        values: what JSON or YAML holds of a ``Sampling``; anything but a mapping comes back as it is.

    Returns:
        A new mapping; ``values`` is left alone.
    """
    if not isinstance(values, Mapping):
        return values
    lifted: dict[str, Any] = {}
    for name, value in values.items():
        former = Sampling.former_names.get(name)
        if former is None or isinstance(value, Mapping):
            lifted[name] = {**lifted[name], **value} if isinstance(lifted.get(name), dict) else value
        else:
            group, _, own = former.partition(".")
            lifted[group] = {**lifted.get(group, {}), own: value}
    return lifted


def with_current_sampling(saved: Mapping[str, Any]) -> dict[str, Any]:
    """What a ``pipeline.json``, ``manifest.json`` or ``run.json`` holds, with its samplings' keys of today."""
    named = ("sampling", "fine_sampling", "coarse_sampling")
    return {name: current_sampling(value) if name in named else value for name, value in saved.items()}
