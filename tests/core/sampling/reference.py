"""The decoding of official MaskGIT once more, slowly: one token at a time, in float32, from its description.

The other orders are written the same way. Nothing here is shared with ``maskgen.sampling.loop``,
``maskgen.sampling.selectors.named``, ``maskgen.sampling.selectors.remasking``, ``maskgen.sampling.selectors.halton``,
``maskgen.sampling.temperatures`` or ``maskgen.schedules``.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import count

import numpy as np
import torch

f32 = np.float32


def mask_ratio(schedule: str, done: int, steps: int) -> np.float32:
    """Share hidden after ``done`` of ``steps`` steps, rounded to float32 as the official program does."""
    if schedule == "cosine":
        gamma = np.cos(f32(math.pi / 2) * (f32(done) / f32(steps)))
    elif schedule == "uniform":
        # One rounding of the exact 1 - done * fl32(1 / steps), which is what a fused multiply-add gives.
        gamma = f32(float(1 - done * Fraction(float(f32(1) / f32(steps)))))
    else:
        raise AssertionError(schedule)
    return min(max(f32(gamma), f32(1e-6)), f32(1))


def course(value: float | str, steps: int) -> list[float]:
    """A number, or a word as ``linear:2,0``, at every step."""
    if not isinstance(value, str):
        return [value] * steps
    shape, _, numbers = value.partition(":")
    first, *rest = (float(number) for number in numbers.split(","))
    last = rest[0] if rest else first
    found = []
    for step in range(steps):
        progress = 0.0 if steps == 1 else step / (steps - 1)
        if shape == "cosine":
            progress = (1 - math.cos(math.pi * progress)) / 2
        found.append(first + (last - first) * progress)
    return found


def log_softmax_at(logits: Sequence[np.float32], index: int) -> np.float32:
    """Log-probability of one id, in float32."""
    top = max(logits)
    total = f32(0)
    for value in logits:
        total += np.exp(value - top)
    return (logits[index] - top) - np.log(total)


def draw_id(
    logits: Sequence[np.float32], gumbel: Sequence[np.float32], temperature: float, exponent: float = 1.0
) -> tuple[int, np.float32]:
    """The id drawn for one hidden token from p^exponent, and log p of it."""
    if temperature:
        logits = [value / f32(temperature) for value in logits]
    if temperature == 0 or exponent == math.inf:
        best = max(range(len(logits)), key=lambda v: logits[v])  # the first of equals
    else:
        best = max(range(len(logits)), key=lambda v: logits[v] * f32(exponent) + gumbel[v])
    return best, log_softmax_at(logits, best)


@dataclass
class Row:
    """What a selector may look at: one row at one step, places as lists."""

    logits: list[Sequence[np.float32]]
    log_prob: list[np.float32]
    settled: list[np.float32]
    hidden: list[bool]
    start: list[bool]
    noise: list[np.float32]
    item_noise: float
    weight: float
    planned: int
    shares: tuple[float, float]
    scores: list[float] | None
    axes: Sequence[int]

    @property
    def count(self) -> int:
        """How many to hide again, if decided tokens stay decided."""
        return max(1, min(sum(self.hidden) - 1, self.planned))


def lowest(confidence: Sequence[float], among: Sequence[bool], number: int) -> list[bool]:
    """The ``number`` lowest; what ties with the next one is kept, and known places are as confident as can be."""
    ranked = [value if free else math.inf for value, free in zip(confidence, among, strict=True)]
    cut = sorted(ranked)[min(number, len(ranked) - 1)]
    return [value < cut for value in ranked]


def hide_confidence(row: Row) -> list[bool]:
    weight = f32(row.weight)
    return lowest([p + weight * g for p, g in zip(row.log_prob, row.noise, strict=True)], row.hidden, row.count)


def hide_random(row: Row) -> list[bool]:
    return lowest(row.noise, row.hidden, row.count)


def van_der_corput(number: int, base: int) -> Fraction:
    """The digits of a number mirrored at the radix point."""
    value, place = Fraction(0), Fraction(1, base)
    while number:
        number, digit = divmod(number, base)
        value, place = value + digit * place, place / base
    return value


def halton_path(axes: Sequence[int]) -> list[int]:
    """Cells as the points of the Halton sequence first fall into them, until none is left."""
    path: list[int] = []
    for number in count(1):
        cell = 0
        for base, size in zip((2, 3, 5, 7), axes, strict=False):
            cell = cell * size + math.floor(van_der_corput(number, base) * size)
        if cell not in path:
            path.append(cell)
        if len(path) == math.prod(axes):
            return path
    raise AssertionError


def hide_halton(row: Row) -> list[bool]:
    path = halton_path(row.axes)
    codebooks = len(row.hidden) // len(path)
    begin = min(math.floor(math.exp(-math.exp(-row.item_noise)) * len(path)), len(path) - 1)
    order = [cell * codebooks + k for cell in path[begin:] + path[:begin] for k in range(codebooks)]
    hidden_in_turn = [place for place in order if row.hidden[place]]
    if len(row.hidden) <= row.count:  # a single place that is all there is: the cut is that place itself
        return [False] * len(row.hidden)
    again = hidden_in_turn[len(hidden_in_turn) - row.count :] if hidden_in_turn else []
    return [place in again for place in range(len(row.hidden))]


def hide_moment(row: Row) -> list[bool]:
    scores = []
    for place, logits in enumerate(row.logits):
        log_p = [float(log_softmax_at(logits, v)) for v in range(len(logits))]
        if row.weight == 0:
            scores.append(max(log_p))
        else:
            power = 1 + 1 / row.weight
            top = max(log_p)
            moment = top * power + math.log(sum(math.exp((value - top) * power) for value in log_p))
            scores.append(row.weight * (moment + float(row.noise[place])))
    return lowest(scores, row.hidden, row.count)


def hide_entropy(row: Row, bound: float) -> list[bool]:
    entropies = []
    for logits in row.logits:
        log_p = [float(log_softmax_at(logits, v)) for v in range(len(logits))]
        entropies.append(-sum(math.exp(value) * value for value in log_p))
    places = [place for place, free in enumerate(row.hidden) if free]
    places.sort(key=lambda place: entropies[place] - row.weight * float(row.noise[place]))
    kept: list[int] = []
    for place in places:
        together = [entropies[other] for other in [*kept, place]]
        if sum(together) - max(together) > bound and len(places) - len(kept) <= row.count:
            break
        kept.append(place)
    return [free and place not in kept for place, free in enumerate(row.hidden)]


def hide_critic(row: Row) -> list[bool]:
    if row.scores is None:
        return [False] * len(row.hidden)
    real = [-math.log1p(math.exp(-score)) for score in row.scores]
    number = max(1, min(sum(row.start) - 1, row.planned))
    return lowest([p + row.weight * float(g) for p, g in zip(real, row.noise, strict=True)], row.start, number)


def hide_remdm(row: Row, kind: str, eta: float) -> list[bool]:
    before, after = row.shares
    decided = [free and not still for free, still in zip(row.start, row.hidden, strict=True)]
    most = 1.0 if before == 1 else min(1.0, after / (1 - before))
    sigma = min(eta, most) if kind == "cap" else eta * most
    doubts = [math.exp(-math.exp(float(row.settled[place]))) if free else 0.0 for place, free in enumerate(decided)]
    again = []
    for place, free in enumerate(row.start):
        coin = math.exp(-math.exp(-float(row.noise[place])))
        if row.hidden[place]:
            chance = after / before if kind == "conf" else (after - (1 - before) * sigma) / before
        else:
            chance = sigma * doubts[place] / sum(doubts) if kind == "conf" and decided[place] else sigma
        again.append(free and coin < chance)
    return again


def hide(select: str, row: Row) -> list[bool]:
    """What is hidden after the step, by the order of that name."""
    name, _, number = select.partition(":")
    if name.startswith("remdm-"):
        return hide_remdm(row, name.removeprefix("remdm-"), float(number))
    if name == "entropy":
        return hide_entropy(row, float(number))
    known = {"confidence": hide_confidence, "random": hide_random, "halton": hide_halton}
    known |= {"moment": hide_moment, "critic": hide_critic}
    return known[name](row)


def reference_sample(
    logits_fn: Callable[[torch.Tensor, int], torch.Tensor],
    tokens: torch.Tensor,
    mask: torch.Tensor,
    noise: object,
    *,
    steps: int,
    schedule: str,
    select: str,
    temperature: float | str,
    choice_temperature: float | str,
    start_step: int,
    axes: Sequence[int] = (),
    critic: Callable[[torch.Tensor, int], torch.Tensor] | None = None,
) -> tuple[list[list[int]], list[list[list[bool]]]]:
    """Final ids and the mask after every step, each a list a row over the flattened places."""
    rows, shape = len(tokens), tokens.shape
    mask_id = [row.flatten().tolist() for row in tokens]
    current = [row.flatten().tolist() for row in tokens]
    hidden = [row.flatten().tolist() for row in mask]
    start = [list(row) for row in hidden]
    drawn = [list(row) for row in current]
    settled = [[f32(0)] * len(row) for row in hidden]
    heats, choices = course(temperature, steps), course(choice_temperature, steps)
    first = noise.choice(start_step, shape).flatten(1)[:, 0].tolist()
    history = []
    for step in range(start_step, steps):
        logits = logits_fn(torch.tensor(current).view(shape), step)
        sample_noise = noise.sample(step, logits.shape).numpy()
        choice_noise = noise.choice(step, shape).numpy()
        logits, last = logits.numpy(), step == steps - 1
        weight = choices[step] if isinstance(choice_temperature, str) else choices[step] * (1 - (step + 1) / steps)
        sharp = 1.0 if last or select != "moment" else (1 + 1 / weight if weight else math.inf)
        steps_rows = []
        for b in range(rows):
            flat, gumbel = logits[b].reshape(-1, logits.shape[-1]), sample_noise[b].reshape(-1, logits.shape[-1])
            drawn[b] = list(current[b])
            log_prob = [f32(0)] * len(drawn[b])
            for place, is_hidden in enumerate(hidden[b]):
                if is_hidden:
                    found = draw_id(list(flat[place]), list(gumbel[place]), heats[step], sharp)
                    drawn[b][place], log_prob[place] = found
                    settled[b][place] = log_prob[place]
            ratios = [mask_ratio(schedule, done, steps) if done > start_step else f32(1) for done in (step, step + 1)]
            planned = math.floor(f32(sum(start[b])) * ratios[1])
            ranking = list(choice_noise[b].reshape(-1))
            warm = [[value / f32(heats[step] or 1) for value in place] for place in flat]
            fixed = (warm, log_prob, list(settled[b]), hidden[b], start[b], ranking, first[b])
            steps_rows.append(Row(*fixed, weight, planned, (float(ratios[0]), float(ratios[1])), None, axes))
        if critic is not None and not last:
            scores = critic(torch.tensor(drawn).view(shape), step).flatten(1).tolist()
            for row, of_row in zip(steps_rows, scores, strict=True):
                row.scores = of_row
        hidden = [hide(select, row) for row in steps_rows]
        columns = zip(mask_id, drawn, hidden, strict=True)
        current = [[m if again else d for m, d, again in zip(*row, strict=True)] for row in columns]
        history.append([list(row) for row in hidden])
        if select.startswith("entropy") and not any(map(any, hidden)):
            break
    return drawn, history
