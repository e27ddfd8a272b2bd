"""Which codes may be sampled at all: top-k, top-p (nucleus) and locally typical sampling.

A filter maps logits ``[..., V]`` to logits with ``-inf`` at what is left out. It wraps the model before the sampler sees
it, as guidance does, so that every filter works with every sampler. Classes that tie with the last one kept are kept too:
which of equals stays must not depend on their numbers.

Shapes: B batch, N tokens, K codebooks, V vocabulary.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from maskgen.sampling.layers import Layer
from maskgen.sampling.loop import LogitsFn
from maskgen.sampling.speed.query import PartialLogits, Query


@dataclass(frozen=True, kw_only=True)
class TokenFilter(Layer):
    """The filters of a sample, applied in VampNet's order: typical, top-k, top-p; None leaves one out.

    Attributes:
        top_k: see ``top_k``.
        top_p: see ``top_p``.
        typical_mass: see ``typical``.
        typical_min_tokens: see ``typical``; means something with ``typical_mass`` only.
    """

    top_k: int | None = None
    top_p: float | None = None
    typical_mass: float | None = None
    typical_min_tokens: int = 64

    def __post_init__(self) -> None:
        if self.top_k is not None:
            _at_least_one("top_k", self.top_k)
        for name in ("top_p", "typical_mass"):
            share = getattr(self, name)
            if share is not None:
                _share(name, share)
        _at_least_one("typical_min_tokens", self.typical_min_tokens)

    @property
    def enabled(self) -> bool:
        """Whether anything is left out at all."""
        return (self.top_k, self.top_p, self.typical_mass) != (None, None, None)

    def __call__(self, logits: Tensor) -> Tensor:
        """Float ``[..., V]`` -> ``[..., V]`` with ``-inf`` at the classes left out."""
        if self.typical_mass is not None:
            logits = typical(logits, self.typical_mass, self.typical_min_tokens)
        if self.top_k is not None:
            logits = top_k(logits, self.top_k)
        return logits if self.top_p is None else top_p(logits, self.top_p)


def filtered_logits(logits_fn: LogitsFn, keep: Callable[[Tensor], Tensor]) -> LogitsFn:
    """A ``logits_fn`` whose logits, in float32, went through a filter of ``[..., V]``, such as a ``TokenFilter``.

    One that leaves out nothing leaves ``logits_fn`` as it is.
    """
    if isinstance(keep, TokenFilter) and not keep.enabled:
        return logits_fn
    if isinstance(logits_fn, PartialLogits):
        return _FilteredLogits(logits_fn, keep)
    return lambda tokens, step: keep(logits_fn(tokens, step).float())


class _FilteredLogits(PartialLogits):
    """See ``filtered_logits``: a filter looks at one token at a time, so it does not matter which are predicted."""

    def __init__(self, inner: PartialLogits, keep: Callable[[Tensor], Tensor]) -> None:
        self._inner, self._keep, self.reuse = inner, keep, inner.reuse

    @property
    def is_partial(self) -> bool:
        """See ``PartialLogits``."""
        return self._inner.is_partial

    def check_reuse(self, every: int) -> None:
        """See ``PartialLogits``."""
        self._inner.check_reuse(every)

    def answer(self, tokens: Tensor, step: int, query: Query) -> Tensor:
        """See ``PartialLogits``."""
        return self._keep(self._inner.answer(tokens, step, query).float())


def top_k(logits: Tensor, k: int) -> Tensor:
    """Keep the k most likely classes.

    Args:
        logits: float ``[..., V]``.
        k: at least 1; V or more keeps everything.

    Returns:
        float ``[..., V]``.

    Raises:
        ValueError: k < 1.
    """
    _at_least_one("top_k", k)
    if k >= logits.shape[-1]:
        return logits
    return logits.masked_fill(logits < logits.topk(k).values[..., -1:], -torch.inf)


def top_p(logits: Tensor, p: float) -> Tensor:
    """Keep the most likely classes up to and including the one whose cumulative probability first exceeds p.

    Nucleus sampling (Holtzman et al. 2020, arXiv 1904.09751) with the rule of VampNet; at least one class is kept.

    Args:
        logits: float ``[..., V]``.
        p: in (0, 1]; 1 keeps everything.

    Returns:
        float ``[..., V]``.

    Raises:
        ValueError: p out of range.
    """
    _share("top_p", p)
    if p == 1:
        return logits
    ordered = logits.sort(dim=-1, descending=True).values
    last = (ordered.softmax(-1).cumsum(-1) <= p).sum(-1, keepdim=True).clamp(max=logits.shape[-1] - 1)
    return logits.masked_fill(logits < ordered.gather(-1, last), -torch.inf)


def typical(logits: Tensor, mass: float, min_tokens: int = 1) -> Tensor:
    """Keep the classes whose surprise is closest to the expected one (Meister et al. 2022, arXiv 2202.00666, section 4).

    Classes are ranked by ``|-log p - H|``, H the entropy; the smallest set is kept whose probability reaches ``mass``.

    Args:
        logits: float ``[..., V]``; ``-inf`` stays left out.
        mass: in (0, 1]; VampNet names 0.15.
        min_tokens: so many classes are kept at least, the first of the same ranking; VampNet names 64.

    Returns:
        float ``[..., V]``.

    Raises:
        ValueError: mass out of range, or min_tokens < 1.
    """
    _share("typical_mass", mass)
    _at_least_one("typical_min_tokens", min_tokens)
    log_probs = logits.log_softmax(-1)
    probs = log_probs.exp()
    distance = (-log_probs - torch.special.entr(probs).sum(-1, keepdim=True)).abs()
    ordered, order = distance.sort(dim=-1)
    short = (probs.gather(-1, order).cumsum(-1) < mass).sum(-1, keepdim=True)
    last = short.clamp(min=min_tokens - 1).clamp(max=logits.shape[-1] - 1)
    return logits.masked_fill(distance > ordered.gather(-1, last), -torch.inf)


def _share(name: str, share: float) -> None:
    if not 0 < share <= 1 or math.isnan(share):
        raise ValueError(f"{name}: got {share}, expected a share over 0, at most 1")


def _at_least_one(name: str, count: int) -> None:
    if count < 1:
        raise ValueError(f"{name}: got {count}, expected at least 1")
