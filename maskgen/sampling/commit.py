"""COMMIT: conditions embedded in the mask (MAGVIT, Yu et al. 2023, arXiv 2212.05199, section 3.2), decoding.

A condition, as the first frame of a clip, is padded to a whole signal and tokenised like one, so its tokens near the
padding are not what the answer should hold there. Hence they are not kept: they stand in the input where others are masked,
as a draft, and the model predicts their positions too. So there are three kinds of positions: *refine* (masked, the input
shows the condition), *mask* (masked, the input shows the mask id), *reconstruct* (visible, the input shows the answer).

Training masks are in ``maskgen.objectives.commit_masking``. Shapes: B batch, N tokens, K codebooks, V vocabulary.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from enum import IntEnum

import torch
from torch import Tensor

from maskgen.conditioning import Cond
from maskgen.noise import Noise
from maskgen.sampling.checks import check_logits, check_numbers, check_sampling
from maskgen.sampling.filters import TokenFilter
from maskgen.sampling.guidance import Guidance, TokenModel
from maskgen.sampling.loop import SampleStep
from maskgen.sampling.selectors.ranking import mask_lowest
from maskgen.schedules import get_schedule, mask_counts


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
        tokens: long ``[B, N, K]``: the answer so far where visible; where masked, the condition's token if there is one,
            else the mask id.
        mask: bool ``[B, N, K]``, True where a token is to be decided.
        given: bool ``[B, N, K]``, True where the condition has a token.
        mask_id: V for our models.
    """

    tokens: Tensor
    mask: Tensor
    given: Tensor
    mask_id: int

    @property
    def unconditional(self) -> Tensor:
        """The same without the condition's tokens, long ``[B, N, K]``: what the unconditional half of guidance sees."""
        return self.tokens.masked_fill(self.mask, self.mask_id)

    @property
    def segments(self) -> Tensor:
        """1 where ``tokens`` shows the condition, else 0, long ``[B, N, K]``: MAGVIT's optional segment ids."""
        return (self.mask & self.given).long()


CommitLogitsFn = Callable[[CommitInputs, int], Tensor]
"""``logits_fn(inputs, step)`` -> logits ``[B, N, K, V]``; guidance and segment ids need more than the tokens."""


def commit_logits(model: TokenModel, cond: Cond, axes: Sequence[int] | None = None) -> CommitLogitsFn:
    """The plain ``logits_fn`` of a model under fixed conditions."""
    return lambda inputs, step: model(inputs.tokens, cond, axes)


def commit_guided_logits(
    model: TokenModel,
    cond: Cond,
    guidance: Guidance,
    *,
    steps: int,
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
        guidance: its ``weights``.
        steps: number of sampling steps.
        null_task: task of the unconditional half, where ``cond`` names tasks; None keeps the same task (MAGVIT does for
            models that were never trained to generate without a condition).
        axes: token grid, passed on to the model.
    """
    weights = guidance.weights(steps)
    without = cond.unconditional()
    if cond.task is not None and null_task is not None:
        without = replace(without, task=torch.full_like(cond.task, int(null_task)))
    both = Cond.cat([replace(half, null=None) for half in (cond, without)])

    def logits_fn(inputs: CommitInputs, step: int) -> Tensor:
        if weights[step] == 0:
            return model(inputs.tokens, cond, axes)
        tokens = torch.cat((inputs.tokens, inputs.unconditional))
        conditional, unconditional = model(tokens, both, axes).float().chunk(2)
        return conditional + weights[step] * (conditional - unconditional)

    return logits_fn


@torch.no_grad()
def sample_commit(
    logits_fn: CommitLogitsFn,
    condition: Tensor,
    given: Tensor,
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
) -> Tensor:
    """Decide all tokens in ``steps`` parallel steps, those of the condition included.

    At the start everything is masked. For each step k = 0 .. steps - 1, with ratio q = (k + 1) / steps:

    1. show the model the decided tokens, at masked positions the condition's token where given and the mask id elsewhere;
    2. sample every masked token from the softmax; decided tokens keep their ids;
    3. score = log-probability of the sampled token + choice_temperature x (1 - q) x Gumbel noise;
    4. remask the n of lowest score, n = max(1, min(masked now - 1, floor(N K x schedule(q)))), and those that tie with the
       last of them; the last step keeps all it sampled.

    What differs from ``maskgen.sampling.sample``: condition tokens are refined, ties mask more (there fewer), and the
    log-probability is that of the untouched logits, before ``temperature`` and ``keep``. With several codebooks (ours;
    MAGVIT has one) all tokens of a row are one ranking.

    Args:
        logits_fn: see ``CommitLogitsFn``; its V columns are all that can be sampled.
        condition: long ``[B, N, K]``, tokens of the padded condition; anything where not given.
        given: bool ``[B, N, K]``, True where the condition counts. Rows may differ; an all-False row is generated freely.
        mask_id: V for our models.
        steps: number of forward passes, at least 1. More steps than tokens is legal: the last masked token is then sampled
            anew at every step (official MAGVIT masks the whole grid again there).
        schedule: a name for ``maskgen.schedules.get_schedule``.
        temperature: divides the logits before sampling; 0 takes the most likely token. MAGVIT always samples at 1.
        choice_temperature: weight of the noise on the score at ratio 0.
        keep: which codes may be sampled (top-k, top-p).
        seeds: see ``maskgen.sampling.sample``, also for the next two.
        noise: instead of ``seeds``.
        callback: sees each step.

    Returns:
        long ``[B, N, K]``, all tokens decided by the model.

    Raises:
        ValueError: shapes that do not fit, mask ids among the given tokens, ``steps`` < 1, negative temperatures, an
            unknown schedule, neither or both of ``seeds`` and ``noise``.
    """
    gamma = get_schedule(schedule)
    source = check_sampling(condition, given, steps, seeds, noise, names="condition given")
    check_numbers(temperature=temperature, choice_temperature=choice_temperature)
    if bool(((condition == mask_id) & given).any()):
        raise ValueError(f"condition: got the mask id {mask_id} at given positions; each of them needs a token there")
    start = condition.masked_fill(~given, mask_id)
    guess, mask = start, torch.ones_like(given)
    total = mask.flatten(1).sum(1)
    for step in range(steps):
        tokens = torch.where(mask, start, guess)
        logits = check_logits(logits_fn(CommitInputs(tokens, mask, given, mask_id), step), tokens)
        ids = _sampled(logits if keep is None else keep(logits), temperature, source, step)
        log_probs = logits.gather(-1, ids[..., None]).squeeze(-1) - logits.logsumexp(-1)
        log_probs = log_probs.masked_fill(~mask, 0.0)
        guess = torch.where(mask, ids, tokens)
        # Official: a float32 quotient, where the sampler of MaskGIT multiplies by a float32 1 / steps.
        counts = mask_counts(gamma(torch.tensor(step + 1.0) / steps, total), total, mask.flatten(1).sum(1))
        weight = choice_temperature * (1 - (step + 1) / steps)
        mask = mask_lowest(source.choice(step, given.shape).mul_(weight).add_(log_probs), mask, counts)
        if callback is not None:
            callback(SampleStep(step, steps, guess, mask, log_probs))
    return guess


def _sampled(logits: Tensor, temperature: float, noise: Noise, step: int) -> Tensor:
    """An id for every position, ``[B, N, K]``."""
    if temperature == 0:
        return logits.argmax(-1)
    if temperature != 1:
        logits = logits / temperature
    return noise.sample(step, logits.shape).add_(logits).argmax(-1)
