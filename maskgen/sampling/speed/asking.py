"""What the sampler asks of the model at each step: which places, whether rows may be equal, what may be used again.

Shapes: B batch, N tokens, P of them, K codebooks, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from maskgen.models.partial import first_places
from maskgen.sampling.selectors.base import Selector
from maskgen.sampling.speed.plan import Plan
from maskgen.sampling.speed.prediction import Asked, Prediction

__all__ = ["Asking"]


class Asking:
    """Asks for logits step by step.

    Args:
        logits_fn: a ``Prediction``, of which parts can be had, or any function, which is asked for everything.
        selector: decides which places matter.
        plan: how many.
        watched: whether somebody wants to see the whole draw of each step.

    Raises:
        ValueError: keys and values are to be used again, and the selector may take back what was decided.
    """

    def __init__(
        self, logits_fn: Callable[[torch.Tensor, int], torch.Tensor], selector: Selector, plan: Plan, watched: bool
    ) -> None:
        prediction = logits_fn if isinstance(logits_fn, Prediction) and logits_fn.is_partial else None
        self._logits_fn, self._prediction, self._plan = logits_fn, prediction, plan
        self._bounded = selector.bounded
        self._every = 1 if prediction is None else prediction.reuse
        self.is_ahead = prediction is not None and selector.blind and (not watched or self._every > 1)
        """Whether the selector chooses before the model is asked, and then only what it keeps is drawn."""
        if self._every > 1 and (selector.revises or not selector.bounded):
            raise ValueError(
                f"reuse: got {self._every}, which works with orders that follow the schedule and take "
                "nothing back: 'confidence', 'random', 'halton', 'moment' and 'entropy'; use 1, or one of these"
            )
        self._first = True
        # With ``reuse``: places asked for since the last whole step, that included.
        self._recent: list[torch.Tensor] = []

    def __call__(
        self, tokens: torch.Tensor, wanted: torch.Tensor, step: int, last: bool
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Logits of the wanted places.

        Args:
            tokens: long ``[B, N, K]``, what the model sees.
            wanted: bool ``[B, N, K]``, what must be drawn.
            step: counted from 0.
            last: whether it is the last of all.

        Returns:
            Logits ``[B, P, K, V]`` and their places, long ``[B, P]``; None for all N.
        """
        if self._prediction is None:
            return self._logits_fn(tokens, step), None
        count = self._plan.decided[step] if self.is_ahead and not last else self._plan.hidden[step]
        count = max(1, count) if self._bounded else tokens.shape[1]
        share, self._first = self._first, False
        if self._every > 1:
            return self._reused(tokens, wanted.any(-1), step, count, share)
        places = None if count >= tokens.shape[1] else first_places(wanted.any(-1), count)
        return self._prediction.at(tokens, step, Asked(places=places, share=share)), places

    def _reused(
        self, tokens: torch.Tensor, wanted: torch.Tensor, step: int, count: int, share: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """A whole step, or one that computes what may have changed since the last whole one and sees the rest as it was.

        Which places a row computes depends on that row alone, so that its sample does not depend on its batch.
        """
        assert self._prediction is not None
        if (step - self._plan.run[0]) % self._every == 0:
            places = first_places(wanted, count, repeat=True)
            self._recent = [places]
            return self._prediction.at(tokens, step, Asked(places=places, share=share, keep=True)), places
        if self.is_ahead:
            places = first_places(wanted, count, repeat=True)
            self._recent.append(places)
            changed = torch.cat(self._recent, dim=1)
            within = torch.arange(changed.shape[1] - count, changed.shape[1], device=tokens.device)
            within = within.expand(len(tokens), -1)
        else:  # whatever is hidden now was hidden, and asked for, at the last whole step
            (changed,) = self._recent
            within = first_places(wanted.gather(1, changed), count, repeat=True)
            places = changed.gather(1, within)
        return self._prediction.at(tokens, step, Asked(places=places, changed=changed, within=within)), places
