"""The decoding of official MaskGIT once more, slowly: one token at a time, in float32, from its description.

Nothing here is shared with ``maskgen.sampler``, ``maskgen.selectors`` or ``maskgen.schedules``.
"""

import math
from collections.abc import Callable
from fractions import Fraction

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


def log_softmax_at(logits: list[np.float32], index: int) -> np.float32:
    """Log-probability of one id, in float32."""
    top = max(logits)
    total = f32(0)
    for value in logits:
        total += np.exp(value - top)
    return (logits[index] - top) - np.log(total)


def draw_id(logits: list[np.float32], gumbel: list[np.float32], temperature: float) -> tuple[int, np.float32]:
    """The id drawn for one hidden token, and its log-probability."""
    if temperature == 0:
        best = max(range(len(logits)), key=lambda v: logits[v])  # the first of equals
    else:
        logits = [value / f32(temperature) for value in logits]
        best = max(range(len(logits)), key=lambda v: logits[v] + gumbel[v])
    return best, log_softmax_at(logits, best)


def reference_sample(
    logits_fn: Callable[[torch.Tensor, int], torch.Tensor],
    tokens: torch.Tensor,
    mask: torch.Tensor,
    noise: object,
    *,
    steps: int,
    schedule: str,
    select: str,
    temperature: float,
    choice_temperature: float,
    start_step: int,
) -> tuple[list[list[int]], list[list[list[bool]]]]:
    """Final ids and the mask after every step, each a list a row over the flattened places."""
    rows, shape = len(tokens), tokens.shape
    mask_id = [row.flatten().tolist() for row in tokens]
    current = [row.flatten().tolist() for row in tokens]
    hidden = [row.flatten().tolist() for row in mask]
    at_start = [sum(row) for row in hidden]
    drawn = [list(row) for row in current]
    history = []
    for step in range(start_step, steps):
        logits = logits_fn(torch.tensor(current).view(shape), step)
        sample_noise = noise.sample(step, logits.shape).numpy()
        choice_noise = noise.choice(step, shape).numpy()
        logits = logits.numpy()
        for b in range(rows):
            flat, gumbel = logits[b].reshape(-1, logits.shape[-1]), sample_noise[b].reshape(-1, logits.shape[-1])
            ranking = choice_noise[b].reshape(-1)
            drawn[b] = list(current[b])
            confidence = [f32(np.inf)] * len(drawn[b])
            for place, is_hidden in enumerate(hidden[b]):
                if not is_hidden:
                    continue
                drawn[b][place], log_prob = draw_id(list(flat[place]), list(gumbel[place]), temperature)
                weight = f32(choice_temperature * (1 - (step + 1) / steps))
                confidence[place] = ranking[place] if select == "random" else log_prob + weight * ranking[place]
            planned = math.floor(f32(at_start[b]) * mask_ratio(schedule, step + 1, steps))
            count = max(1, min(sum(hidden[b]) - 1, planned))
            cut = sorted(confidence)[min(count, len(confidence) - 1)]
            hidden[b] = [value < cut for value in confidence]
            current[b] = [mask_id[b][place] if hidden[b][place] else drawn[b][place] for place in range(len(drawn[b]))]
        history.append([list(row) for row in hidden])
    return drawn, history
