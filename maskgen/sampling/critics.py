"""Scores of sampled tokens by a model that tells them from real ones (Token-Critic, Lezama et al. 2022, 2209.04439).

Shapes: B batch, N tokens, K codebooks, V vocabulary.
"""

from collections.abc import Sequence

from torch import Tensor

from maskgen.conditioning import Cond
from maskgen.models.base import MaskedTransformer
from maskgen.sampling.guidance import TokenModel
from maskgen.sampling.selectors.base import CriticFn


def token_scores(logits: Tensor, tokens: Tensor) -> Tensor:
    """The logit of each token that stands there: float ``[B, N, K, V]``, long ``[B, N, K]`` -> float32 ``[B, N, K]``."""
    return logits.gather(-1, tokens[..., None]).squeeze(-1).float()


def critic_scores(model: TokenModel, cond: Cond, axes: Sequence[int] | None = None) -> CriticFn:
    """What ``maskgen.sampling.get_selector`` takes as ``critic``: the scores of a model under fixed conditions."""
    return lambda tokens, step: token_scores(model(tokens, cond, axes), tokens)


def check_critic(critic: MaskedTransformer, generator: MaskedTransformer) -> None:
    """Refuse a critic for other tokens or classes than the generator's.

    Raises:
        ValueError: naming both sides.
    """
    names = ("vocab_size", "num_codebooks", "num_classes")
    got, expected = ({name: getattr(model, name) for name in names} for model in (critic, generator))
    wrong = [f"{name} is {got[name]}, expected {expected[name]}" for name in names if got[name] != expected[name]]
    if generator.null_class and not critic.null_class:
        wrong.append("it has no null class, as the generator has")
    if wrong:
        raise ValueError(f"the critic does not fit the generator: {'; '.join(wrong)}")
