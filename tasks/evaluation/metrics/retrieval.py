"""Whether pictures show their captions: cosines of features, and which of many captions is the nearest.

Shapes: M pictures, F features, R captions that each picture is compared with.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

AMONG = 100
"""R of published R-precision (Xu et al. 2018, arXiv 1711.10485; with CLIP, Park et al. 2021): the own caption, 99 others."""

_ROWS = 256


def cosines(pictures: Tensor, texts: Tensor) -> NDArray[np.float64]:
    """Cosine of each picture and its text, ``[M]``; of vectors ``[M, F]`` on both sides."""
    found: NDArray[np.float64] = torch.cosine_similarity(pictures.double(), texts.double()).numpy()
    return found


def nearest_captions(
    pictures: Tensor, texts: Tensor, captions: Sequence[str], *, among: int = AMONG, seed: int = 0
) -> tuple[NDArray[np.float64], int]:
    """R-precision of each picture: 1 if its own caption is nearer than R - 1 other ones, 0 if it is not.

    1. The others are drawn for each picture among the different captions of the set, its own wording left out;
    2. of fewer than R different captions, all are taken;
    3. k others exactly as near as the own caption leave 1 / (1 + k): what a guess among them would have.

    Args:
        pictures: unit vectors ``[M, F]``.
        texts: unit vectors ``[M, F]`` of their captions.
        captions: M texts, which tell equal captions.
        among: R.
        seed: of the draws.

    Returns:
        ``[M]``, and R as it was.

    Raises:
        ValueError: fewer than two different captions, or R below 2.
    """
    rows = {caption: row for row, caption in enumerate(captions)}
    if len(rows) < 2 or among < 2:
        raise ValueError(f"R-precision: got {len(rows)} different caption(s) and R {among}, expected 2 or more of both")
    place = {caption: number for number, caption in enumerate(rows)}
    own = np.array([place[caption] for caption in captions])
    different, size = texts[list(rows.values())].double(), min(among, len(rows))
    generator, found = np.random.default_rng(seed), np.empty(len(captions))
    for first in range(0, len(captions), _ROWS):
        block = range(first, min(first + _ROWS, len(captions)))
        drawn = np.stack([generator.choice(len(rows) - 1, size - 1, replace=False) for _ in block])
        drawn += drawn >= own[block, None]
        chosen = np.concatenate((own[block, None], drawn), axis=1)
        near = torch.einsum("mf,mrf->mr", pictures[first : first + _ROWS].double(), different[chosen]).numpy()
        ties = (near[:, 1:] == near[:, :1]).sum(1)
        found[first : first + _ROWS] = (near[:, 0] >= near[:, 1:].max(1)) / (1 + ties)
    return found, size
