"""COMMIT: conditions embedded in the mask (MAGVIT, Yu et al. 2023, arXiv 2212.05199, section 3.2), decoding.

A condition, as the first frame of a clip, is padded to a whole signal and tokenised like one, so its tokens near the
padding are not what the answer should hold there. Hence they are no known tokens: they stand in the input where others
are hidden, as a draft, and the model predicts their places too. Three places follow: *refine* (hidden, the input shows the
condition), *mask* (hidden, the input shows the mask id), *reconstruct* (visible, the input shows the answer).

Training masks are in ``maskgen.objectives.commit_masking``. Shapes: B batch, N tokens, K codebooks, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from enum import IntEnum

import torch

from maskgen.conditioning import Cond
from maskgen.noise import Noise, SeededNoise, check_seeds
from maskgen.sampling.filters import TokenFilter
from maskgen.sampling.guidance import GuidanceRamp, TokenModel, guidance_weights
from maskgen.sampling.loop import SampleStep
from maskgen.schedules import get_schedule, mask_counts

__all__ = [
    "CommitInputs",
    "CommitLogitsFn",
    "Prompt",
    "commit_guided_logits",
    "commit_logits",
    "hide_lowest",
    "sample_commit",
]


class Prompt(IntEnum):
    """What ``Cond.task`` holds: the task prompts of MAGVIT in their official order."""

    FULL_GENERATION = 0
    FRAME_PREDICTION = 1
    FRAME_INTERPOLATION = 2
    OUTPAINTING = 3
    INPAINTING = 4


@dataclass(frozen=True)
class CommitInputs:
    """What the model is shown, in training and at each step of decoding.

    Attributes:
        tokens: long ``[B, N, K]``: the answer so far where visible; where hidden, the condition's token if there is one,
            else the mask id.
        hidden: bool ``[B, N, K]``, True where a token is to be decided.
        known: bool ``[B, N, K]``, True where the condition has a token.
        mask_id: id of a hidden token, V for our models.
    """

    tokens: torch.Tensor
    hidden: torch.Tensor
    known: torch.Tensor
    mask_id: int

    @property
    def unconditional(self) -> torch.Tensor:
        """The same without the condition's tokens, long ``[B, N, K]``: what the unconditional half of guidance sees."""
        return self.tokens.masked_fill(self.hidden, self.mask_id)

    @property
    def segments(self) -> torch.Tensor:
        """1 where ``tokens`` shows the condition, else 0, long ``[B, N, K]``: MAGVIT's optional segment ids."""
        return (self.hidden & self.known).long()


CommitLogitsFn = Callable[[CommitInputs, int], torch.Tensor]
"""``logits_fn(inputs, step)`` -> logits ``[B, N, K, V]``; guidance and segment ids need more than the tokens."""


def commit_logits(model: TokenModel, cond: Cond, axes: Sequence[int] | None = None) -> CommitLogitsFn:
    """The plain ``logits_fn`` of a model under fixed conditions."""
    return lambda inputs, step: model(inputs.tokens, cond, axes)


def commit_guided_logits(
    model: TokenModel,
    cond: Cond,
    *,
    scale: float,
    steps: int,
    ramp: GuidanceRamp = "constant",
    power: float = 3.0,
    interval: tuple[float, float] = (0.0, 1.0),
    null_task: int | None = Prompt.FULL_GENERATION,
    axes: Sequence[int] | None = None,
) -> CommitLogitsFn:
    """A ``logits_fn`` that pushes away from the prediction without any condition: c + w (c - u).

    The unconditional half sees other inputs, not only another ``cond``: no condition tokens
    (``CommitInputs.unconditional``), no class, and the prompt of full generation. Both halves go through one forward of 2 B
    rows; steps of weight 0 run the conditional half alone, which is exact. The weight is an extra: 1 + w in the notation of
    others.

    Args:
        model: see ``TokenModel``; must have been trained on rows without conditions (``condition_dropout`` of
            ``maskgen.objectives.commit``, or full generation among its tasks).
        cond: the conditions.
        scale: largest weight w; 0 means no guidance.
        steps: number of sampling steps, for the ramp.
        ramp: see ``maskgen.sampling.guidance.guidance_weight``, also for the next two.
        power: exponent of ``power-cosine``.
        interval: part of the progress that is guided at all.
        null_task: task of the unconditional half, where ``cond`` names tasks; None keeps the same task (MAGVIT does for
            models that were never trained to generate without a condition).
        axes: token grid, passed on to the model.

    Raises:
        ValueError: negative scale, unknown ramp, a power or an interval out of range.
    """
    weights = guidance_weights(ramp, scale, steps, power, interval)
    without = cond.unconditional()
    if cond.task is not None and null_task is not None:
        without = replace(without, task=torch.full_like(cond.task, int(null_task)))
    both = Cond.cat([cond, without])

    def logits_fn(inputs: CommitInputs, step: int) -> torch.Tensor:
        if weights[step] == 0:
            return model(inputs.tokens, cond, axes)
        tokens = torch.cat((inputs.tokens, inputs.unconditional))
        conditional, unconditional = model(tokens, both, axes).float().chunk(2)
        return conditional + weights[step] * (conditional - unconditional)

    return logits_fn


@torch.no_grad()
def sample_commit(
    logits_fn: CommitLogitsFn,
    condition: torch.Tensor,
    known: torch.Tensor,
    *,
    mask_id: int,
    steps: int,
    schedule: str = "cosine",
    temperature: float = 1.0,
    choice_temperature: float = 4.5,
    keep: TokenFilter | None = None,
    seeds: Sequence[int] | None = None,
    noise: Noise | None = None,
    callback: Callable[[SampleStep], None] | None = None,
) -> torch.Tensor:
    """Decide all tokens in ``steps`` parallel steps, those of the condition included.

    At the start everything is hidden. For each step k = 0 .. steps - 1, with ratio q = (k + 1) / steps:

    1. show the model the decided tokens, at hidden places the condition's token where known and the mask id elsewhere;
    2. draw every hidden token from the softmax; decided tokens keep their ids;
    3. score = log-probability of the drawn token + choice_temperature x (1 - q) x Gumbel noise;
    4. hide the n of lowest score again, n = max(1, min(hidden now - 1, floor(N K x schedule(q)))), and those that tie with
       the last of them; the last step keeps its full draw.

    What differs from ``maskgen.sampling.sample``: condition tokens are refined, ties hide more (there fewer), and the
    log-probability is that of the untouched logits, before ``temperature`` and ``keep``. With several codebooks (ours;
    MAGVIT has one) all cells of a row are one ranking.

    Args:
        logits_fn: see ``CommitLogitsFn``; its V columns are all that can be drawn.
        condition: long ``[B, N, K]``, tokens of the padded condition; anything where not known.
        known: bool ``[B, N, K]``, True where the condition counts. Rows may differ; an all-False row is generated freely.
        mask_id: id of a hidden token (V for our models).
        steps: number of forward passes, at least 1. More steps than tokens is legal: the last hidden token is then drawn
            anew at every step (official MAGVIT hides the whole grid again there).
        schedule: a name for ``maskgen.schedules.get_schedule``.
        temperature: divides the logits before drawing; 0 takes the most likely token. MAGVIT always draws at 1.
        choice_temperature: weight of the noise on the score at ratio 0.
        keep: which codes may be drawn (top-k, top-p).
        seeds: one integer an item: the item's sample depends on nothing else of the batch.
        noise: the source of randomness itself, instead of ``seeds``.
        callback: called after each step with a ``SampleStep``; its mask is what is hidden after the step.

    Returns:
        long ``[B, N, K]``, all tokens decided by the model.

    Raises:
        ValueError: shapes that do not fit, mask ids among the known tokens, ``steps`` < 1, negative temperatures, an
            unknown schedule, neither or both of ``seeds`` and ``noise``.
    """
    gamma = get_schedule(schedule)
    _check(condition, known, mask_id, steps, temperature, choice_temperature)
    if (noise is None) == (seeds is None):
        raise ValueError("sample_commit: give either seeds (one integer an item) or noise")
    source = noise or SeededNoise(check_seeds(seeds or [], len(condition)), condition.device)
    start = condition.masked_fill(~known, mask_id)
    drawn, hidden = start, torch.ones_like(known)
    total = hidden.flatten(1).sum(1)
    for step in range(steps):
        tokens = torch.where(hidden, start, drawn)
        logits = logits_fn(CommitInputs(tokens, hidden, known, mask_id), step).float()
        picked = _draw(logits, known.shape, temperature, keep, source, step)
        log_probs = logits.gather(-1, picked[..., None]).squeeze(-1) - logits.logsumexp(-1)
        log_probs = log_probs.masked_fill(~hidden, 0.0)
        drawn = torch.where(hidden, picked, tokens)
        # Official: a float32 quotient, where the sampler of MaskGIT multiplies by a float32 1 / steps.
        counts = mask_counts(gamma, torch.tensor(step + 1.0) / steps, total, hidden.flatten(1).sum(1))
        weight = choice_temperature * (1 - (step + 1) / steps)
        hidden = hide_lowest(source.choice(step, known.shape).mul_(weight).add_(log_probs), hidden, counts)
        if callback is not None:
            callback(SampleStep(step, steps, drawn, hidden, log_probs))
    return drawn


def hide_lowest(scores: torch.Tensor, among: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    """The places of lowest score; places that tie with the last of them are taken too (official MAGVIT).

    Args:
        scores: ``[B, ...]``; what stands outside ``among`` is ignored.
        among: bool ``[B, ...]``, the places that may be taken.
        counts: long ``[B]``, how many, at least 1; no more than there are.

    Returns:
        bool ``[B, ...]``.
    """
    ranked = scores.masked_fill(~among, torch.inf).flatten(1)
    cut = ranked.sort(dim=-1).values.gather(-1, counts[:, None] - 1)
    return (ranked <= cut).view_as(among) & among


def _draw(
    logits: torch.Tensor,
    shape: Sequence[int],
    temperature: float,
    keep: TokenFilter | None,
    noise: Noise,
    step: int,
) -> torch.Tensor:
    """An id for every place, ``[B, N, K]``."""
    if logits.shape[:-1] != shape:
        raise ValueError(
            f"logits_fn returned {tuple(logits.shape)}, expected [B, N, K, V] with [B, N, K] = {tuple(shape)}"
        )
    if keep is not None:
        logits = keep(logits)
    if temperature == 0:
        return logits.argmax(-1)
    if temperature != 1:
        logits = logits / temperature
    return noise.sample(step, logits.shape).add_(logits).argmax(-1)


def _check(
    condition: torch.Tensor,
    known: torch.Tensor,
    mask_id: int,
    steps: int,
    temperature: float,
    choice_temperature: float,
) -> None:
    if condition.ndim != 3 or condition.dtype != torch.long or 0 in condition.shape[1:]:
        raise ValueError(
            f"condition: got {condition.dtype} {tuple(condition.shape)}, expected int64 [B, N, K], not empty"
        )
    if known.shape != condition.shape or known.dtype != torch.bool:
        raise ValueError(
            f"known: got {known.dtype} {tuple(known.shape)}, expected bool {tuple(condition.shape)} as the condition"
        )
    if bool(((condition == mask_id) & known).any()):
        raise ValueError(f"condition: got the mask id {mask_id} at known places; a known place needs a token there")
    if steps < 1:
        raise ValueError(f"steps: got {steps}, expected at least 1")
    if temperature < 0 or choice_temperature < 0:
        raise ValueError(
            f"temperature and choice_temperature: got {temperature} and {choice_temperature}, expected 0 or more"
        )
