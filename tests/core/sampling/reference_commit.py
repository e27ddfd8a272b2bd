"""COMMIT's decoding once more, slowly: one token at a time, in float32, from its description (MAGVIT, section 3.2).

Nothing here is shared with ``maskgen.sampling.commit``; the draw of one token is that of the sampler's reference.
"""

import math
from collections.abc import Callable

import numpy as np
import torch

from tests.core.sampling.reference import draw_id, f32, log_softmax_at


def share_hidden(schedule: str, done: int, steps: int) -> np.float32:
    """Share hidden after ``done`` of ``steps`` steps: the progress is a float32 quotient."""
    progress = f32(done) / f32(steps)
    gamma = np.cos(f32(math.pi / 2) * progress) if schedule == "cosine" else f32(1) - progress
    return min(max(gamma, f32(1e-6)), f32(1))


def reference_commit(
    logits_of: Callable[[torch.Tensor], torch.Tensor],
    condition: torch.Tensor,
    known: torch.Tensor,
    noise: object,
    *,
    mask_id: int,
    steps: int,
    schedule: str,
    temperature: float,
    choice_temperature: float,
) -> tuple[list[list[int]], list[list[list[bool]]]]:
    """Final ids and what is hidden after every step, each a list a row over the flattened places."""
    rows, shape = len(condition), condition.shape
    start = []
    for ids, has in zip(condition, known, strict=True):
        pairs = zip(ids.flatten().tolist(), has.flatten().tolist(), strict=True)
        start.append([token if is_known else mask_id for token, is_known in pairs])
    shown = [list(row) for row in start]
    places = len(start[0])
    hidden = [[True] * places for _ in range(rows)]
    drawn: list[list[int]] = [[] for _ in range(rows)]
    history = []
    for step in range(steps):
        logits = logits_of(torch.tensor(shown).view(shape))
        gumbel, ranking = noise.sample(step, logits.shape).numpy(), noise.choice(step, shape).numpy()
        logits = logits.numpy()
        for b in range(rows):
            flat, draws = logits[b].reshape(places, -1), gumbel[b].reshape(places, -1)
            drawn[b], score = list(shown[b]), [math.inf] * places
            for place in range(places):
                if hidden[b][place]:
                    drawn[b][place], _ = draw_id(list(flat[place]), list(draws[place]), temperature)
                    noisy = ranking[b].reshape(-1)[place] * f32(choice_temperature * (1 - (step + 1) / steps))
                    score[place] = noisy + log_softmax_at(list(flat[place]), drawn[b][place])
            planned = math.floor(f32(places) * share_hidden(schedule, step + 1, steps))
            count = max(1, min(sum(hidden[b]) - 1, planned))
            cut = sorted(score)[count - 1]
            hidden[b] = [is_hidden and bool(value <= cut) for is_hidden, value in zip(hidden[b], score, strict=True)]
            shown[b] = [start[b][i] if hidden[b][i] else drawn[b][i] for i in range(places)]
        history.append([list(row) for row in hidden])
    return drawn, history
