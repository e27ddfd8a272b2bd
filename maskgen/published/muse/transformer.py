"""Muse's transformers as lucidrains' muse-maskgit-pytorch 0.3.5 builds them, and the key map of their files.

The paper's models (Chang et al. 2023, arXiv 2301.00704) were never released; this open code is what people train. Base and
super-resolution are one network. Text (``Cond.context``: T5's last hidden states) and, in super-resolution, the tokens of
the small picture (``Cond.coarse``) are what it attends to; these tokens go through the same table as the large picture's,
without positions, so both tokenizers need codebooks of one size.

Ours where the original has a fault: a negative prompt works (there it raises a ``TypeError``), and a super-resolution model
refuses to run without the small picture's tokens (there ``Muse`` and the README train it without them, in silence).

Shapes: B batch, N tokens of the grid, L text tokens, T text width, M tokens of the small picture, D width, K codes.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from maskgen.checkpoint import empty_shapes, renamed
from maskgen.conditioning import Cond
from maskgen.models.base import MaskedTransformer, check_grid
from maskgen.precision import linear_float32
from maskgen.published.muse.blocks import GatedFeedForward, MuseBlock


@dataclass(frozen=True, kw_only=True)
class MuseConfig:
    """Sizes of a ``MuseTransformer`` or ``MuseCritic``; the defaults are those of the original's README.

    Attributes:
        codebook_size: K, codes that can be predicted; of both pictures in super-resolution.
        axes: token grid, whose positions are learned.
        width: D.
        layers: how many.
        heads: of both attentions.
        head_width: width of a head.
        mlp_width: hidden width of the gated feed-forward; the original takes int(4 x 2 / 3 D).
        text_width: T, width of ``Cond.context``; there is no projection where it equals D.
        self_conditioned: reads its own features of the step before (Chen et al. 2022, arXiv 2208.04202).
        coarse_size: M, number of tokens in ``Cond.coarse`` of a super-resolution model; 0 for others.
    """

    codebook_size: int = 65536
    axes: tuple[int, int] = (16, 16)
    width: int = 512
    layers: int = 8
    heads: int = 8
    head_width: int = 64
    mlp_width: int = 1365
    text_width: int = 768
    self_conditioned: bool = False
    coarse_size: int = 0

    def __post_init__(self) -> None:
        if self.codebook_size < 2:
            raise ValueError(f"codebook_size: got {self.codebook_size}, expected 2 or more")
        sizes = {name: getattr(self, name) for name in ("width", "heads", "head_width", "mlp_width", "text_width")}
        wrong = [f"{name} {size}" for name, size in sizes.items() if size < 1]
        if wrong or min(self.axes) < 1 or self.layers < 0 or self.coarse_size < 0:
            others = f"axes {self.axes}, layers {self.layers}, coarse_size {self.coarse_size}"
            raise ValueError(
                f"got {', '.join(wrong) or others}; expected positive sizes, and layers and coarse_size of 0 or more"
            )


class MuseNetwork(MaskedTransformer):
    """What base, super-resolution and critic share: everything but what the last layer gives."""

    drops_text = True

    def __init__(self, config: MuseConfig, rows: int, outputs: int) -> None:
        super().__init__()
        self.config = config
        self.vocab_size, self.num_codebooks = config.codebook_size, 1
        self.num_classes, self.null_class = 0, False
        self.context_width, self.coarse_size = config.text_width, config.coarse_size
        width = config.width
        self.token_emb = nn.Embedding(rows, width)
        self.pos_emb = nn.Embedding(math.prod(config.axes), width)
        self.text_proj = nn.Linear(config.text_width, width, bias=False) if config.text_width != width else None
        # Its width does not follow that of the other feed-forwards.
        self.self_condition = GatedFeedForward(width, int(width * 4 * 2 / 3)) if config.self_conditioned else None
        self.blocks = nn.ModuleList(
            MuseBlock(width, config.heads, config.head_width, config.mlp_width) for _ in range(config.layers)
        )
        self.norm = nn.LayerNorm(width, bias=False)
        self.head = nn.Linear(width, outputs, bias=False)

    def features(
        self, tokens: Tensor, cond: Cond, axes: Sequence[int] | None = None, previous: Tensor | None = None
    ) -> Tensor:
        """What ``outputs`` reads; see ``MuseTransformer.forward`` for the conditions and errors.

        Args:
            tokens: long ``[B, N, 1]``.
            cond: text and, in super-resolution, the small picture.
            axes: the trained grid.
            previous: features of the step before, ``[B, N, D]``, for self-conditioned models; none at the first step.

        Returns:
            ``[B, N, D]``.
        """
        check_grid(tokens, axes, self.config.axes)
        if previous is not None and self.self_condition is None:
            raise ValueError("previous: got features, but this model is not self_conditioned; leave them out")
        context, mask = self._context(cond, tokens)
        x = self.token_emb(tokens[..., 0]) + self.pos_emb.weight
        if previous is not None and self.self_condition is not None:
            x = x + self.self_condition(previous)
        for block in self.blocks:
            x = block(x, context, mask)
        return self.norm(x)

    def outputs(self, features: Tensor) -> Tensor:
        """``[B, N, D]`` -> ``[B, N, 1, K]`` of the transformer, ``[B, N, 1, 1]`` of the critic."""
        return linear_float32(features, self.head.weight)[:, :, None]

    def _context(self, cond: Cond, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """What is attended to, ``[B, L + M, D]``, and where it is real, bool ``[B, L + M]``."""
        cond.check_used(type(self).__name__, "context", "context_mask", "coarse")
        self._check_cond(cond, len(tokens))
        parts = [self.token_emb.weight.new_zeros(len(tokens), 0, self.config.width)]
        masks = [torch.zeros(len(tokens), 0, dtype=torch.bool, device=tokens.device)]
        if cond.context is not None:
            text = cond.context.to(self.token_emb.weight.dtype)
            parts.append(text if self.text_proj is None else self.text_proj(text))
            masks.append(text_mask(cond.context, cond.context_mask))
        if cond.coarse is not None:
            parts.append(self.token_emb(cond.coarse[..., 0]))
            masks.append(torch.ones_like(cond.coarse[..., 0], dtype=torch.bool))
        return torch.cat(parts, dim=1), torch.cat(masks, dim=1)

    def _check_cond(self, cond: Cond, batch: int) -> None:
        text, coarse, width = cond.context, cond.coarse, self.config.text_width
        if text is not None and (text.ndim != 3 or (len(text), text.shape[2]) != (batch, width)):
            raise ValueError(f"cond.context: got {tuple(text.shape)}, expected [{batch}, L, {width}]")
        if cond.context_mask is not None and (text is None or cond.context_mask.shape != text.shape[:2]):
            of = "no context" if text is None else f"a context of {tuple(text.shape)}"
            raise ValueError(f"cond.context_mask: got {tuple(cond.context_mask.shape)} for {of}, expected [B, L] of it")
        size = self.config.coarse_size
        if (None if coarse is None else coarse.shape) != ((batch, size, 1) if size else None):
            got = "none" if coarse is None else tuple(coarse.shape)
            expected = (
                f"the tokens of the small picture, [{batch}, {size}, 1]" if size else "none: this model takes none"
            )
            raise ValueError(f"cond.coarse: got {got}, expected {expected}")


class MuseTransformer(MuseNetwork):
    """Predicts codes; the table has one more row, for masked tokens."""

    def __init__(self, config: MuseConfig) -> None:
        super().__init__(config, rows=config.codebook_size + 1, outputs=config.codebook_size)

    def forward(
        self, tokens: Tensor, cond: Cond, axes: Sequence[int] | None = None, previous: Tensor | None = None
    ) -> Tensor:
        """See ``MaskedTransformer``.

        Args:
            tokens: long ``[B, N, 1]``, K where masked.
            cond: ``context`` ``[B, L, T]`` with ``context_mask``, or without one: then vectors of zeros are padding.
                A row without real text, or no context at all, is "no text" (``without_text``), and is what the model
                was trained with; the empty prompt is not. ``coarse`` ``[B, M, 1]``
                in super-resolution only.
            axes: the trained grid.
            previous: see ``features``.

        Returns:
            ``[B, N, 1, K]``.

        Raises:
            ValueError: tokens that do not fit the grid, or conditions that are missing, too many or of another shape.
        """
        return self.outputs(self.features(tokens, cond, axes, previous))


class MuseCritic(MuseNetwork):
    """Says of every token whether it is real, from complete tokens (Token-Critic, Lezama et al. 2022, arXiv 2209.04439).

    The published critic gives one number a position, the log-odds that its token is wrong. Here that is a critic as
    ``maskgen.sampling.critics`` expects it: minus that number is the logit of any code at the position.
    """

    def __init__(self, config: MuseConfig) -> None:
        super().__init__(config, rows=config.codebook_size, outputs=1)

    def forward(self, tokens: Tensor, cond: Cond, axes: Sequence[int] | None = None) -> Tensor:
        """As of ``MuseTransformer``, but no token may be masked; the K logits of a position are one number in memory."""
        wrong = self.outputs(self.features(tokens, cond, axes))
        return -wrong.expand(-1, -1, -1, self.vocab_size)


def text_mask(context: Tensor, mask: Tensor | None) -> Tensor:
    """Where text ``[B, L, T]`` is real, bool ``[B, L]``: the mask or, without one, every vector that is not all zeros."""
    return context.ne(0).any(-1) if mask is None else mask


def without_text(cond: Cond, rows: Tensor | None = None) -> Cond:
    """The same conditions with no real text in some rows; low-resolution tokens stay.

    Args:
        cond: conditions of B rows.
        rows: bool ``[B]``, True where the text goes; all if left out.
    """
    if cond.context is None:
        return cond
    real = text_mask(cond.context, cond.context_mask)
    kept = torch.zeros_like(real) if rows is None else real & ~rows[:, None]
    return replace(cond, context_mask=kept, null=None)


# Ours -> theirs, all that match.
_NAMES = (
    (r"^blocks\.(\d+)\.self_attention\.", r"transformer_blocks.layers.\1.0."),
    (r"^blocks\.(\d+)\.context_attention\.", r"transformer_blocks.layers.\1.1."),
    (r"^blocks\.(\d+)\.feed_forward\.", r"transformer_blocks.layers.\1.2."),
    (r"^self_condition\.", "self_cond_to_init_embed."),
    (r"(\.2|embed)\.norm\.weight$", r"\1.0.gamma"),
    (r"(\.2|embed)\.wide\b", r"\1.1"),
    (r"(\.2|embed)\.hidden_norm\.weight$", r"\1.3.gamma"),
    (r"(\.2|embed)\.out\b", r"\1.4"),
    (r"^norm\b", "transformer_blocks.norm"),
    (r"\bnorm\.weight$", "norm.gamma"),
    (r"^text_proj\b", "text_embed_proj"),
    (r"^head\b", "to_logits"),
)


def official_name(name: str) -> str:
    """What a weight or sub-module of ours is called in the published code."""
    for pattern, replacement in _NAMES:
        name = re.sub(pattern, replacement, name)
    return name


def convert(
    state: Mapping[str, Tensor], config: MuseConfig, kind: type[MuseNetwork] = MuseTransformer
) -> dict[str, Tensor]:
    """Published weights as the state dict of ``kind(config)``; tensors are passed on, not copied.

    Args:
        state: published name to tensor: a transformer's or critic's own, or those of a whole ``MaskGit`` as its ``save``
            writes them.
        config: see ``config_from``.
        kind: ``MuseTransformer`` or ``MuseCritic``.

    Raises:
        ValueError: naming every tensor that is missing, unexpected or of another shape, or a shift that is not zero.
    """
    state = _part(state, kind)
    shifts = [name for name in state if name.endswith(".beta")]
    if moved := [name for name in shifts if not state[name].is_meta and bool(state[name].any())]:
        raise ValueError(f"{moved[0]}: got numbers other than 0, expected the constant zeros of the published norms")
    # The top-level norm is made and never used; so is the way in of self-conditioning where that is off.
    unused = {*shifts, "norm.gamma"}
    if not config.self_conditioned:
        unused |= {name for name in state if name.startswith("self_cond_to_init_embed.")}
    kept = {name: tensor for name, tensor in state.items() if name not in unused}
    return renamed(kept, empty_shapes(kind, config), official_name, "Muse transformer")


def config_from(
    state: Mapping[str, Tensor],
    *,
    kind: type[MuseNetwork] = MuseTransformer,
    axes: tuple[int, int] | None = None,
    self_conditioned: bool = False,
    coarse_size: int = 0,
) -> MuseConfig:
    """Sizes read from published weights.

    Args:
        state: as for ``convert``.
        kind: ``MuseTransformer`` or ``MuseCritic``.
        axes: token grid; the square one by default.
        self_conditioned: not visible in weights: all of them have the layers.
        coarse_size: not visible in weights; the number of tokens of the small picture in super-resolution.

    Raises:
        ValueError: the weights are not those of such a model.
    """
    state = _part(state, kind)
    anchors = {
        "token_emb.weight": 2,
        "pos_emb.weight": 2,
        "to_logits.weight": 2,
        "transformer_blocks.layers.0.0.null_kv": 4,
        "transformer_blocks.layers.0.2.4.weight": 2,
    }
    if absent := [name for name, ndim in anchors.items() if name not in state or state[name].ndim != ndim]:
        raise ValueError(
            f"not the weights of a Muse transformer: {len(absent)} of {len(anchors)} tensors that give its sizes are "
            f"missing or of another shape ({', '.join(absent)})"
        )
    rows, width = state["token_emb.weight"].shape
    positions = len(state["pos_emb.weight"])
    side = math.isqrt(positions)
    if axes is None and side * side != positions:
        raise ValueError(f"pos_emb.weight: got {positions} positions, which are no square grid; give its axes")
    _, heads, _, head_width = state["transformer_blocks.layers.0.0.null_kv"].shape
    prefix = "transformer_blocks.layers."
    return MuseConfig(
        codebook_size=rows - 1 if kind is MuseTransformer else rows,
        axes=(side, side) if axes is None else axes,
        width=width,
        layers=len({name[len(prefix) :].partition(".")[0] for name in state if name.startswith(prefix)}),
        heads=heads,
        head_width=head_width,
        mlp_width=state["transformer_blocks.layers.0.2.4.weight"].shape[1],
        text_width=state["text_embed_proj.weight"].shape[1] if "text_embed_proj.weight" in state else width,
        self_conditioned=self_conditioned,
        coarse_size=coarse_size,
    )


def _part(state: Mapping[str, Tensor], kind: type[MuseNetwork]) -> Mapping[str, Tensor]:
    """The part of a whole ``MaskGit``; anything else as it is."""
    prefix = "token_critic." if kind is MuseCritic else "transformer."
    return {name.removeprefix(prefix): state[name] for name in state if name.startswith(prefix)} or state
