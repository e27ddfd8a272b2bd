"""The first stage of a cascade, seen from the second: whether both fit, and what it sees of pictures and masks.

Muse (arXiv 2301.00704, section 2.5): a model of small pictures decides, and a second one makes large pictures of its tokens.
In an edit both grids are masked, and the small one is decided first.

Shapes: B batch, H W pixels of the second stage, N tokens of its grid (h, w), M of the small grid, K codebooks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from einops import rearrange, repeat
from torch import Tensor
from torch.nn import functional as F

from maskgen.models.base import MaskedTransformer
from maskgen.tasks.conditions.request import Request
from maskgen.tasks.data.tokens.coarse import smaller
from maskgen.tasks.media.images import fill_holes
from maskgen.tasks.model_folder import PipelineConfig
from maskgen.tokenizers.base import Tokenizer


class Stage(Protocol):
    """A ``maskgen.tasks.pipeline.Pipeline`` as one stage sees the other."""

    tokenizer: Tokenizer
    transformer: MaskedTransformer
    config: PipelineConfig
    device: torch.device
    axes: tuple[int, ...]

    @property
    def coarse(self) -> Stage | None: ...  # noqa: D102
    @property
    def modality(self) -> str: ...  # noqa: D102
    def encode(self, signal: Tensor) -> Tensor: ...  # noqa: D102
    def decode(self, tokens: Tensor, axes: Sequence[int] | None = None, scale: Tensor | None = None) -> Tensor: ...  # noqa: D102
    def fill(  # noqa: D102
        self, tokens: Tensor, mask: Tensor, request: Request, *, start_step: int = 0, batch_size: int = 64
    ) -> Tensor: ...


def check_stages(first: Stage, transformer: MaskedTransformer, config: PipelineConfig, modality: str) -> None:
    """Refuse a first stage that a second one was not made for.

    Args:
        first: the model of the smaller pictures.
        transformer: of the second stage.
        config: of the second stage.
        modality: of the second stage.

    Raises:
        ValueError: no pictures, a transformer that takes no smaller grid or another one, pictures that are not smaller or of
            another shape, or classes that the second stage does not have.
    """
    if (modality, first.modality) != ("image", "image"):
        raise ValueError(f"coarse: got a first stage of {first.modality} for one of {modality}; a cascade is of images")
    small, large, codebooks = first.config.signal_size, config.signal_size, first.transformer.num_codebooks
    if codebooks != 1 or small[0] * large[1] != small[1] * large[0] or small[0] >= large[0]:
        raise ValueError(
            f"coarse: got a model of pictures of {small[0]} x {small[1]} with {codebooks} codebook(s), expected smaller "
            f"ones of the shape of {large[0]} x {large[1]}, with one"
        )
    told = getattr(getattr(transformer.config, "context", None), "coarse", None)
    got = (told.vocab_size, tuple(told.axes)) if told is not None and transformer.coarse_size else (0, ())
    expected = (first.transformer.vocab_size, tuple(first.axes))
    if got != expected:
        raise ValueError(
            f"the transformer does not fit the coarse model: context.coarse has {got[0]} codes on {got[1]}, expected "
            f"{expected[0]} on {expected[1]}"
        )
    classes = (first.transformer.num_classes, first.config.class_names)
    if classes[0] and classes != (transformer.num_classes, config.class_names):
        raise ValueError(
            f"coarse: the first stage has {classes[0]} classes, the second {transformer.num_classes}, or they have other "
            "names; train the second one with the classes of the first"
        )


def reduced(pictures: Tensor, first: Stage) -> Tensor:
    """Pictures ``[B, 3, H, W]`` at the size of the first stage: each pixel is the mean of the area it stands for."""
    height, width = first.config.signal_size
    return smaller(pictures, (height, width))


def first_tokens(
    pipe: Stage,
    tokens: Tensor,
    mask: Tensor,
    request: Request,
    picture: Tensor | None,
    batch_size: int,
    start_step: int,
) -> Tensor:
    """What the first stage of a cascade decides, long ``[B, M, 1]``; for the arguments see ``Pipeline.fill``.

    Raises:
        ValueError: there is no first stage.
    """
    first, asked = pipe.coarse, request.coarse
    if first is None or asked is None:
        raise ValueError(
            "this model is the second stage of a cascade, but has no first one (a model in its folder coarse/); put that "
            "there, or give the tokens of smaller pictures as cond.coarse"
        )
    masked = small_mask(mask, pipe.axes, first.axes)
    given = torch.zeros(masked.shape, dtype=torch.long)
    if not masked.all():
        seen = known_pictures(pipe, tokens, mask) if picture is None else picture
        given = first.encode(reduced(seen, first)).expand(masked.shape)
    start = start_step * asked.sampling.steps // request.sampling.steps
    return first.fill(given, masked.to(given.device), asked, start_step=start, batch_size=batch_size)


def small_mask(mask: Tensor, axes: Sequence[int], small: Sequence[int]) -> Tensor:
    """What is masked in the small grid: each cell with a masked token of the large grid in its area.

    Args:
        mask: bool ``[B, N, K]``.
        axes: the large grid (h, w).
        small: the small grid.

    Returns:
        bool ``[B, M, 1]``.
    """
    cells = rearrange(mask.any(-1), "B (h w) -> B 1 h w", h=axes[0])
    pooled = F.adaptive_max_pool2d(cells.float(), tuple(small))
    return rearrange(pooled, "B 1 h w -> B (h w) 1") > 0


def known_pictures(pipe: Stage, tokens: Tensor, mask: Tensor) -> Tensor:
    """The pictures of tokens ``[B, N, K]`` of which some are masked, ``[B, 3, H, W]``; smooth colours stand in the holes."""
    pictures = pipe.decode(torch.where(mask.to(tokens.device), 0, tokens).to(pipe.device))
    holes = rearrange(mask.any(-1).cpu(), "B (h w) -> B h w", h=pipe.axes[0])
    holes = repeat(holes, "B h w -> B (h y) (w x)", y=pipe.tokenizer.stride[0], x=pipe.tokenizer.stride[1])
    rows = zip(pictures, holes, strict=True)
    return torch.stack([picture if hole.all() else fill_holes(picture, hole) for picture, hole in rows])
