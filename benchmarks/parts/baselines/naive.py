"""Parallel decoding as one writes it down from the paper (Chang et al. 2022, arXiv 2202.04200, section 3.2).

Nothing is saved: a softmax over all places, known or not; a multinomial draw for each; the logarithm of the drawn
probability; two forwards where there is guidance; counts on the host, which waits for the device. The paper rounds the
number of hidden tokens up; we round down and add Gumbel noise to the confidence, as its published program does, so that
the ids can be compared with ``maskgen.sampling.sample``.

Shapes: B batch, N tokens, V codes.
"""

import math
from collections.abc import Sequence
from typing import Protocol

import torch

from maskgen.conditioning import Cond
from maskgen.models.base import MaskedTransformer
from maskgen.noise import Noise

__all__ = ["Draws", "NoiseDraws", "TorchDraws", "naive_logits", "sample_naive"]


class Draws(Protocol):
    """Where the loop's randomness comes from."""

    def ids(self, step: int, probabilities: torch.Tensor) -> torch.Tensor:
        """One id a place, long ``[B, N]``, from ``[B, N, V]``."""
        ...

    def gumbel(self, step: int, shape: Sequence[int]) -> torch.Tensor:
        """Gumbel noise of ``shape`` ``[B, N]``."""
        ...


class TorchDraws:
    """torch's own multinomial and uniform numbers.

    Args:
        generator: lives on the device of the probabilities.
    """

    def __init__(self, generator: torch.Generator) -> None:
        self.generator = generator

    def ids(self, step: int, probabilities: torch.Tensor) -> torch.Tensor:
        """See ``Draws``."""
        flat = probabilities.flatten(0, -2)
        return torch.multinomial(flat, 1, generator=self.generator).view(probabilities.shape[:-1])

    def gumbel(self, step: int, shape: Sequence[int]) -> torch.Tensor:
        """See ``Draws``."""
        uniform = torch.rand(*shape, generator=self.generator, device=self.generator.device)
        exponential = -torch.log(uniform.clamp(min=1e-20))
        return -torch.log(exponential.clamp(min=1e-20))


class NoiseDraws:
    """The sampler's own noise, to compare ids: if g is Gumbel noise, exp(-g) is exponential, and the place where p / exp(-g)
    is largest is the one where log p + g is.
    """

    def __init__(self, noise: Noise) -> None:
        self.noise = noise

    def ids(self, step: int, probabilities: torch.Tensor) -> torch.Tensor:
        """See ``Draws``."""
        gumbel = self.noise.sample(step, (*probabilities.shape[:-1], 1, probabilities.shape[-1])).squeeze(-2)
        return (probabilities / torch.exp(-gumbel)).argmax(-1)

    def gumbel(self, step: int, shape: Sequence[int]) -> torch.Tensor:
        """See ``Draws``."""
        return self.noise.choice(step, (*shape, 1)).squeeze(-1)


def naive_logits(model: MaskedTransformer, tokens: torch.Tensor, cond: Cond, weight: float) -> torch.Tensor:
    """Logits ``[B, N, V]`` of tokens ``[B, N]``, pushed by c + w (c - u) with a forward of its own for u."""
    conditional = model(tokens[..., None], cond)[:, :, 0].float()
    if weight == 0:
        return conditional
    unconditional = model(tokens[..., None], cond.unconditional())[:, :, 0].float()
    return conditional + weight * (conditional - unconditional)


@torch.no_grad()
def sample_naive(
    model: MaskedTransformer,
    cond: Cond,
    draws: Draws,
    *,
    batch: int,
    steps: int,
    scale: float = 0.0,
    choice_temperature: float = 4.5,
) -> torch.Tensor:
    """Decide N tokens that are all hidden at the start, in ``steps`` steps of the cosine schedule; long ``[B, N]``.

    For each step k = 0 .. steps - 1: predict, draw all places, keep known ones; hide again the
    max(1, min(hidden - 1, floor(N cos(pi (k + 1) / (2 steps))))) places of least confidence (log p of the drawn id +
    choice_temperature (1 - (k + 1) / steps) x Gumbel noise).
    """
    device = next(model.parameters()).device
    places, mask_id = torch.Size(model.config.axes).numel(), model.vocab_size
    tokens = torch.full((batch, places), mask_id, device=device)
    for step in range(steps):
        probabilities = naive_logits(model, tokens, cond, scale).softmax(-1)
        drawn = draws.ids(step, probabilities)
        hidden = tokens == mask_id
        drawn = torch.where(hidden, drawn, tokens)
        if step == steps - 1:
            return drawn
        chosen = probabilities.gather(-1, drawn[..., None]).squeeze(-1)
        ratio = (step + 1) / steps
        confidence = chosen.log() + choice_temperature * (1 - ratio) * draws.gumbel(step, (batch, places))
        confidence = torch.where(hidden, confidence, torch.inf)
        gamma = torch.cos(torch.tensor(ratio) * (math.pi / 2))
        planned = math.floor((torch.tensor(float(places)) * gamma).item())
        counts = [min(max(1, min(now - 1, planned)), places - 1) for now in hidden.sum(1).tolist()]
        cut_off = confidence.sort(dim=-1).values.gather(1, torch.tensor(counts, device=device)[:, None])
        tokens = torch.where(confidence < cut_off, mask_id, drawn)
    raise AssertionError("steps is at least 1")
