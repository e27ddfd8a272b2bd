"""Scores that a classifier or the model itself gives: Inception score, classification accuracy, masked tokens.

Shapes: M samples, F features, C classes, B batch, N tokens, K codebooks, V vocabulary.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from einops import rearrange
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from maskgen.conditioning import Cond
from maskgen.data import item_seed
from maskgen.models.base import MaskedTransformer
from maskgen.objectives.masking import mask_exactly
from maskgen.precision import fast_matmul
from maskgen.tasks.evaluation.metrics.base import Metric, bootstrap

Features = NDArray[np.float64]

Labels = NDArray[np.int64]


def inception_score(
    logits: Tensor, *, splits: int = 10, split_size: int | None = None, shuffle_seed: int | None = 2020
) -> Metric:
    """Inception score (Salimans et al. 2016, arXiv 1606.03498, section 4): exp of the mean KL(p(y|x) || p(y)).

    Args:
        logits: ``[M, C]`` of a classifier.
        splits: parts, each with a p(y) of its own; the score is the mean of theirs.
        split_size: samples of a part instead, the last of which may be shorter (ADM: 5,000).
        shuffle_seed: order the samples are put into first, as torch-fidelity does; None leaves them in theirs (ADM).

    Returns:
        The mean of the parts; its interval is one standard deviation of them on both sides.

    Raises:
        ValueError: fewer than one part, or fewer samples than parts.
    """
    count = len(logits)
    if logits.ndim != 2 or splits < 1 or count < (1 if split_size else splits) or (split_size or 1) < 1:
        raise ValueError(
            f"Inception score: got logits {tuple(logits.shape)} for {splits} splits, expected [M, C] with at least one "
            "sample in each"
        )
    rows = logits.detach().cpu().double()
    if shuffle_seed is not None:
        rows = rows[torch.from_numpy(np.random.RandomState(shuffle_seed).permutation(count))]
    log_p = rows.log_softmax(dim=1)
    if split_size is None:
        parts = [log_p[number * count // splits : (number + 1) * count // splits] for number in range(splits)]
    else:
        parts = list(log_p.split(split_size))
    scores = np.array([_inception(part) for part in parts])
    mean, spread = float(scores.mean()), float(scores.std())
    order = "in the order given" if shuffle_seed is None else f"shuffled with seed {shuffle_seed}"
    return Metric(
        value=mean,
        count=count,
        low=mean - spread,
        high=mean + spread,
        interval=f"one standard deviation of {len(parts)} splits on both sides",
        note=f"{len(parts)} splits of up to {max(map(len, parts))} samples, {order}",
    )


def accuracy(predicted: Labels, labels: Labels, *, draws: int = 1000, seed: int = 0) -> Metric:
    """Share of right predictions, with a bootstrap interval over the test samples.

    Args:
        predicted: ``[M]``.
        labels: ``[M]``.
        draws: of the bootstrap.
        seed: of the draws.
    """
    return bootstrap(np.asarray(predicted) == np.asarray(labels), draws=draws, seed=seed)


def per_class_accuracy(predicted: Labels, labels: Labels, classes: int) -> list[float | None]:
    """Share of right predictions among the test samples of each class; None for a class that has none.

    Args:
        predicted: ``[M]``.
        labels: ``[M]``, in [0, classes).
        classes: C.
    """
    right = np.asarray(predicted) == np.asarray(labels)
    shares = (right[np.asarray(labels) == label] for label in range(classes))
    return [float(share.mean()) if len(share) else None for share in shares]


def check_classes(labels: Labels, what: str) -> None:
    """Refuse data that no classifier can be trained on.

    Raises:
        ValueError: fewer than two classes.
    """
    found = len(np.unique(np.asarray(labels)))
    if found < 2:
        raise ValueError(
            f"CAS: {what} have {found} class(es), expected at least 2: a classifier of one class is always right"
        )


def classifier_scores(
    real: tuple[Features, Labels], test: tuple[Features, Labels], generated: tuple[Features, Labels]
) -> dict[str, float]:
    """Classification accuracy score and label agreement (Ravuri and Vinyals 2019, arXiv 1905.10887).

    One classifier (scikit-learn's SVC with its defaults) is trained on the real training samples and
    one on the generated samples; both are tested on the real test samples.

    Args:
        real: features ``[M, F]`` and labels ``[M]`` of the training samples.
        test: of the test samples.
        generated: of the generated samples, with the labels they were generated for.

    Returns:
        ``cas``: accuracy of the classifier trained on generated samples; ``cas_real``: of the one trained on real samples;
        ``label_agreement``: share of generated samples that the real classifier reads as the class they were generated for.
        All in [0, 1].

    Raises:
        ValueError: training samples of a single class.
        ImportError: without scikit-learn.
    """
    on_real, on_generated = _fit(real, "the real samples"), _fit(generated, "the generated samples")
    return {
        "cas": float(on_generated.score(*test)),
        "cas_real": float(on_real.score(*test)),
        "label_agreement": float(on_real.score(*generated)),
    }


def read_classes(real: tuple[Features, Labels], others: Sequence[Features], *, strength: float = 1.0) -> list[Labels]:
    """What a classifier (scikit-learn's SVC) that was trained on real samples reads in others.

    Args:
        real: features ``[M, F]`` and labels ``[M]`` it is trained on.
        others: features ``[M, F]`` each.
        strength: its C; more follows the training data closer.

    Returns:
        The class of each, ``[M]``.

    Raises:
        ValueError: training samples of a single class.
        ImportError: without scikit-learn.
    """
    classifier = _fit(real, "the real samples", strength)
    return [classifier.predict(features) for features in others]


def within_class_variance(features: Features, labels: Labels) -> float:
    """Variance around the class mean, summed over features and averaged over classes."""
    return float(np.mean([features[labels == label].var(axis=0).sum() for label in np.unique(labels)]))


@dataclass(frozen=True, kw_only=True)
class MaskedScore:
    """How well masked tokens are predicted at one mask ratio.

    Attributes:
        ratio: share of the tokens that are masked.
        loss: nats a masked token, without label smoothing.
        accuracy: share of masked tokens whose most likely id is right.
    """

    ratio: float
    loss: Metric
    accuracy: Metric


@torch.no_grad()
def masked_scores(
    model: MaskedTransformer,
    tokens: Tensor,
    labels: Tensor | None = None,
    *,
    ratios: Sequence[float] = (0.1, 0.25, 0.5, 0.75, 0.9, 1.0),
    seed: int = 0,
    batch_size: int = 64,
    draws: int = 1000,
    cond: Callable[[slice], Cond] | None = None,
) -> list[MaskedScore]:
    """Loss and accuracy on masked tokens, by the share that is masked.

    Of each example ceil(ratio x N K) positions are masked, at least one; which ones depends on the seed and on the example's
    number alone. Numbers are means over examples.

    Args:
        model: in evaluation mode, on any device.
        tokens: long ``[M, N, K]`` of held-out data.
        labels: long ``[M]`` for class-conditional models.
        ratios: in (0, 1].
        seed: of the masks.
        batch_size: examples at a time.
        draws: of the bootstrap intervals.
        cond: in place of labels, everything that some examples are conditioned on.

    Raises:
        ValueError: no examples, or a ratio out of range.
    """
    if not len(tokens) or not ratios or not all(0 < ratio <= 1 for ratio in ratios):
        raise ValueError(
            f"masked tokens: got {len(tokens)} examples and ratios {list(ratios)}, expected at least one and ratios "
            "in (0, 1]"
        )
    device = next(model.parameters()).device
    found = []
    for ratio in ratios:
        losses, hits = [], []
        for first in range(0, len(tokens), batch_size):
            part = slice(first, first + batch_size)
            grid = tokens[part]
            masked = torch.cat([_masked(grid[0].shape, ratio, seed, first + row) for row in range(len(grid))])
            told = Cond(labels=None if labels is None else labels[part]) if cond is None else cond(part)
            told = replace(told.to(device), task=_task(model, grid))
            with fast_matmul(device):
                logits = model(grid.masked_fill(masked, model.vocab_size).to(device), told)
            loss, right = _token_scores(logits.float().cpu(), grid)
            shares = masked.flatten(1).sum(1)
            losses.append((loss * masked).flatten(1).sum(1) / shares)
            hits.append((right & masked).flatten(1).sum(1) / shares)
        note = f"mask ratio {ratio:g}, seed {seed}"
        found.append(
            MaskedScore(
                ratio=float(ratio),
                loss=bootstrap(torch.cat(losses).double().numpy(), draws=draws, note=note),
                accuracy=bootstrap(torch.cat(hits).double().numpy(), draws=draws, note=note),
            )
        )
    return found


def _inception(log_p: Tensor) -> float:
    p = log_p.exp()
    # Classes that nothing is ever given to have p log p = 0 on both sides.
    marginal = p.mean(0, keepdim=True).clamp(min=torch.finfo(p.dtype).tiny).log()
    return float((p * (log_p - marginal)).sum(1).mean().exp())


def _masked(shape: torch.Size, ratio: float, seed: int, number: int) -> Tensor:
    """Bool ``[1, N, K]`` of one example."""
    positions = shape.numel()
    count = torch.tensor([max(1, int(np.ceil(ratio * positions - 1e-9)))])
    generator = torch.Generator().manual_seed(item_seed(seed, number))
    return rearrange(mask_exactly(count, positions, generator=generator), "1 (n k) -> 1 n k", n=shape[0])


def _task(model: MaskedTransformer, tokens: Tensor) -> Tensor | None:
    """Full generation, where a model knows several tasks: nothing is given but the class."""
    return (
        torch.zeros(len(tokens), dtype=torch.long, device=next(model.parameters()).device) if model.num_tasks else None
    )


def _token_scores(logits: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
    loss = F.cross_entropy(rearrange(logits, "b n k v -> (b n k) v"), tokens.flatten(), reduction="none")
    return loss.view_as(tokens), logits.argmax(-1) == tokens


def _fit(samples: tuple[Features, Labels], what: str, strength: float = 1.0) -> Any:
    try:
        from sklearn.svm import SVC
    except ImportError:
        raise ImportError('the classifier comes with scikit-learn: pip install "maskgen[eval]"') from None
    check_classes(samples[1], what)
    return SVC(C=strength).fit(*samples)
