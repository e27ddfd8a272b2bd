"""The transformer of Halton-MaskGIT (Besnier et al. 2025, arXiv 2503.17076; valeoai/Halton-MaskGIT).

The label enters through adaptive norms alone (no class token). ``registers`` extra rows follow the tokens, without
positions, and are cut off at the end. Queries and keys are RMS-normalised over their whole width, before the heads are
split, without weights. The head is tied to the token table, whose last row is the mask; its column is left out of
``forward``, for a mask must never be sampled. Sub-modules are named as in the official files.

Shapes: B batch, N tokens, R registers, S = N + R sequence, D width, H heads, V codes, C classes.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from maskgen.checkpoint import check_state, empty_shapes
from maskgen.conditioning import Cond
from maskgen.models.attention import AttentionBackend, attend, check_backend
from maskgen.models.base import MaskedTransformer, check_grid, init_layer

_EPS = 1e-5


@dataclass(frozen=True, kw_only=True)
class HaltonConfig:
    """Sizes of a ``HaltonTransformer``; the defaults are "tiny" at 256 pixels.

    Attributes:
        vocab_size: V, number of codes; the mask id.
        num_classes: C; one more row, the null class, is always there.
        axes: token grid; positions are learned.
        width: D.
        layers: number of blocks.
        heads: H; a head is D // H wide, so H times that may be less than D ("small": 6 x 85 = 510 of 512).
        mlp_width: hidden width of the gated feed-forward (the official ``mlp_dim`` m gives 256 ceil(int(2 m / 3) / 256)).
        registers: R.
        attention: back-end, see ``maskgen.models.attention``.

    Raises:
        ValueError: sizes that are not positive, or more heads than width.
    """

    vocab_size: int = 16384
    num_classes: int = 1000
    axes: tuple[int, ...] = (16, 16)
    width: int = 384
    layers: int = 6
    heads: int = 6
    mlp_width: int = 1024
    registers: int = 1
    attention: AttentionBackend = "sdpa"

    def __post_init__(self) -> None:
        sizes = (self.vocab_size - 1, self.num_classes + 1, self.registers + 1, self.layers, self.mlp_width, *self.axes)
        if min(sizes) < 1:
            raise ValueError(
                f"got vocab_size {self.vocab_size}, num_classes {self.num_classes}, registers {self.registers}, layers "
                f"{self.layers}, mlp_width {self.mlp_width}, axes {self.axes}; expected vocab_size of 2 or more, "
                "num_classes and registers of 0 or more, the others positive"
            )
        if not 1 <= self.heads <= self.width:
            raise ValueError(f"heads: got {self.heads}, expected 1 to the width {self.width}")
        check_backend(self.attention)

    @property
    def inner_width(self) -> int:
        """Width of all heads together."""
        return self.heads * (self.width // self.heads)


_SIZES = {  # width, layers, heads, mlp_width
    "tiny": (384, 6, 6, 1024),
    "small": (512, 12, 6, 1536),
    "base": (768, 12, 12, 2048),
    "large": (1024, 24, 16, 2816),
}

_HEADS = {width: heads for width, _, heads, _ in _SIZES.values()}


def _published(size: str, side: int) -> HaltonConfig:
    width, layers, heads, mlp_width = _SIZES[size]
    return HaltonConfig(axes=(side, side), width=width, layers=layers, heads=heads, mlp_width=mlp_width)


PUBLISHED: dict[str, HaltonConfig] = {
    f"halton_maskgit_{16 * side}_{size}": _published(size, side) for side in (16, 24) for size in _SIZES
}
"""Full-size settings by resolution and size, for the LlamaGen tokenizer VQ-16. Released: 256 tiny, small and base; 384
small, base and large."""


class HaltonTransformer(MaskedTransformer):
    """Adaptive-norm encoder with a tied head; see the head of this file."""

    def __init__(self, config: HaltonConfig) -> None:
        super().__init__()
        self.config = config
        self.vocab_size, self.num_classes = config.vocab_size, config.num_classes
        self.num_codebooks, self.null_class = 1, True
        width = config.width
        self.tok_emb = nn.Embedding(config.vocab_size + 1, width)
        self.pos_emb = nn.Embedding(math.prod(config.axes), width)
        self.cls_emb = nn.Embedding(config.num_classes + 1, width)
        self.reg_tokens = nn.Embedding(config.registers, width) if config.registers else None
        self.layers = nn.ModuleList(HaltonBlock(config) for _ in range(config.layers))
        self.last_norm = HaltonLastNorm(width)
        self.head_bias = nn.Parameter(torch.zeros(config.vocab_size + 1))
        self.apply(init_layer)

    def forward(self, tokens: Tensor, cond: Cond, axes: Sequence[int] | None = None) -> Tensor:
        """See ``MaskedTransformer``; K must be 1 and ``axes`` the trained grid.

        Raises:
            ValueError: another number of tokens or codebooks, or another grid.
        """
        check_grid(tokens, axes, self.config.axes)
        return self.table_logits(tokens.squeeze(-1), cond, self.vocab_size)[:, :, None]

    def table_logits(self, ids: Tensor, cond: Cond, columns: int | None = None) -> Tensor:
        """The official forward: logits over the table's first ``columns`` rows, by default all V + 1 with the mask.

        Args:
            ids: long ``[B, N]``, V where masked.
            cond: labels, ``NO_LABEL`` for single rows without one; no labels at all means no class anywhere.
            columns: how many rows of the table to predict.

        Returns:
            ``[B, N, columns]``.
        """
        cond.check_used(type(self).__name__, "labels")
        label = self.cls_emb(cond.class_ids(ids, self.num_classes))
        x = self.tok_emb(ids) + self.pos_emb.weight
        if self.reg_tokens is not None:
            x = torch.cat((x, self.reg_tokens.weight.expand(len(x), -1, -1)), dim=1)
        for block in self.layers:
            x = block(x, label)
        x = self.last_norm(x[:, : ids.shape[1]], label)
        return F.linear(x, self.tok_emb.weight[:columns], self.head_bias[:columns])


class HaltonBlock(nn.Module):
    """x += gate Attention(RMS(x) (1 + scale) + shift); x += gate FeedForward(the same); six chunks from the label."""

    def __init__(self, config: HaltonConfig) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.SiLU(), nn.Linear(config.width, 6 * config.width))
        self.ln1 = nn.RMSNorm(config.width, eps=_EPS)
        self.attn = HaltonAttention(config)
        self.ln2 = nn.RMSNorm(config.width, eps=_EPS)
        self.ff = HaltonFeedForward(config)

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        """``x`` ``[B, S, D]``, ``label`` ``[B, D]`` -> ``[B, S, D]``."""
        # The official source calls the shift gamma and the scale beta; the order in the weights is shift, scale, gate.
        shift_a, scale_a, gate_a, shift_f, scale_f, gate_f = self.mlp(label)[:, None].chunk(6, dim=-1)
        x = x + gate_a * self.attn(self.ln1(x) * (1 + scale_a) + shift_a)
        return x + gate_f * self.ff(self.ln2(x) * (1 + scale_f) + shift_f)


class HaltonAttention(nn.Module):
    """Self-attention without biases; the norm of queries and keys runs over all heads at once."""

    def __init__(self, config: HaltonConfig) -> None:
        super().__init__()
        self.heads, self.backend, inner = config.heads, config.attention, config.inner_width
        self.wq, self.wk, self.wv = (nn.Linear(config.width, inner, bias=False) for _ in range(3))
        self.wo = nn.Linear(inner, config.width, bias=False)
        self.qk_norm = nn.RMSNorm(inner, eps=_EPS, elementwise_affine=False)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, S, D]`` -> ``[B, S, D]``."""
        rows = (self.qk_norm(self.wq(x)), self.qk_norm(self.wk(x)), self.wv(x))
        q, k, v = (rearrange(row, "B S (H D) -> B H S D", H=self.heads) for row in rows)
        return self.wo(rearrange(attend(q, k, v, backend=self.backend), "B H S D -> B S (H D)"))


class HaltonFeedForward(nn.Module):
    """w2(SiLU(w1 x) w3 x), without biases (SwiGLU)."""

    def __init__(self, config: HaltonConfig) -> None:
        super().__init__()
        self.w1, self.w3 = (nn.Linear(config.width, config.mlp_width, bias=False) for _ in range(2))
        self.w2 = nn.Linear(config.mlp_width, config.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, S, D]`` -> ``[B, S, D]``."""
        return self.w2(F.silu(self.w1(x)) * self.w3(x))


class HaltonLastNorm(nn.Module):
    """(RMS(x) weight + bias) (1 + scale) + shift, with shift and scale from the label."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm_final = HaltonNorm(width)
        self.mlp = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        """``x`` ``[B, N, D]``, ``label`` ``[B, D]`` -> ``[B, N, D]``."""
        shift, scale = self.mlp(label)[:, None].chunk(2, dim=-1)
        return self.norm_final(x) * (1 + scale) + shift


class HaltonNorm(nn.RMSNorm):
    """RMS norm with weights and biases."""

    def __init__(self, width: int) -> None:
        super().__init__(width, eps=_EPS)
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        """``[..., D]`` -> ``[..., D]``."""
        return super().forward(x) + self.bias


def config_from(
    state: Mapping[str, Tensor], *, heads: int | None = None, axes: Sequence[int] | None = None
) -> HaltonConfig:
    """Settings that official weights were made with, read from their names and shapes.

    Args:
        state: official name to tensor, without the prefixes ``module.`` and ``_orig_mod.``.
        heads: H, which weights do not show; by default that of the release of the same width.
        axes: token grid; square by default.

    Raises:
        ValueError: the weights that tell the sizes are missing, the positions are no square and ``axes`` is not given, the
            width is of no release and ``heads`` is not given, or the sizes do not fit each other.
    """
    layer = "transformer.layers.0"
    needed = ("tok_emb.weight", "pos_emb.weight", "cls_emb.weight", f"{layer}.attn.wq.weight", f"{layer}.ff.w1.weight")
    missing = [name for name in needed if name not in state or state[name].ndim != 2]
    if missing:
        raise ValueError(
            f"these weights are no Halton-MaskGIT transformer: missing {missing}; found {len(state)} weights as "
            f"{sorted(state)[:3]}"
        )
    rows, width = state["tok_emb.weight"].shape
    positions, inner = len(state["pos_emb.weight"]), len(state[f"{layer}.attn.wq.weight"])
    grid = (math.isqrt(positions),) * 2 if axes is None else tuple(axes)
    if math.prod(grid) != positions:
        raise ValueError(f"positions: got {positions}, expected the product of axes {grid}; give the grid as axes")
    if heads is None and width not in _HEADS:
        raise ValueError(f"heads: width {width} is of no release ({sorted(_HEADS)}); give the number of heads")
    config = HaltonConfig(
        vocab_size=rows - 1,
        num_classes=len(state["cls_emb.weight"]) - 1,
        axes=grid,
        width=width,
        layers=len({match[1] for name in state if (match := re.match(r"transformer\.layers\.(\d+)\.", name))}),
        heads=_HEADS[width] if heads is None else heads,
        mlp_width=len(state[f"{layer}.ff.w1.weight"]),
        registers=len(state["reg_tokens.weight"]) if "reg_tokens.weight" in state else 0,
    )
    if config.inner_width != inner:
        raise ValueError(
            f"heads: got {config.heads}, that is queries of width {config.inner_width}, expected width {inner} as in the "
            "weights; give their number of heads"
        )
    return config


def convert(state: Mapping[str, Tensor], config: HaltonConfig) -> dict[str, Tensor]:
    """Official weights as the state dict of ``HaltonTransformer(config)``; tensors are shared, not copied.

    Args:
        state: official name to tensor. ``head.weight`` repeats ``tok_emb.weight``, to which it is tied.
        config: see ``config_from``.

    Raises:
        ValueError: naming every weight that is missing, unexpected or of another shape, or a head that is not tied.
    """
    shapes = empty_shapes(HaltonTransformer, config)
    names = {_official(name): name for name in shapes}
    expected = {official: shapes[ours] for official, ours in names.items()}
    check_state(state, expected | {"head.weight": shapes["tok_emb.weight"]}, "Halton-MaskGIT weights")
    if not torch.equal(state["head.weight"], state["tok_emb.weight"]):
        raise ValueError(
            "Halton-MaskGIT weights: head.weight differs from tok_emb.weight; expected the same numbers (a tied head)"
        )
    return {ours: state[official] for official, ours in names.items()}


def _official(name: str) -> str:
    if name == "head_bias":
        return "head.bias"
    return f"transformer.{name}" if name.startswith("layers.") else name
