"""MaskBit's generators, LFQBert and Bert, number for number (Weber et al. 2024, arXiv 2409.16211).

A token is K sub-tokens of b bits each, V = 2^b. LFQBert has no table of tokens: the bits themselves, as -1 and 1, go
through one linear layer, and a masked sub-token is b zeros. Bert sums one table a sub-token and ties its head to them.
The class stands **after** the tokens, at the last position.

Shapes: B batch, N tokens, K sub-tokens, b bits of a sub-token, V = 2^b, S = N + 1 sequence, D width, H heads.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from maskgen.checkpoint import empty_shapes, renamed
from maskgen.conditioning import Cond
from maskgen.models.attention import AttentionBackend, attend, check_backend
from maskgen.models.base import MaskedTransformer, check_grid

_EPS = 1e-12  # of every norm


@dataclass(frozen=True, kw_only=True)
class MaskBitConfig:
    """Sizes of a ``MaskBitTransformer``; the defaults are the published generator of 14 bits.

    Attributes:
        tokens: "bits" (LFQBert) or "table" (Bert).
        vocab_size: V, ids of a sub-token, a power of two; V itself means "masked".
        splits: K, sub-tokens of a token.
        num_classes: class ids; one more row holds "no class".
        axes: token grid; positions are learned.
        width: D.
        layers: number of layers.
        heads: H, dividing D.
        mlp_width: hidden width of the feed-forward.
        dropout: on embeddings, attention weights and both branches.
        prenorm: norms before the branches and one at the end, instead of after each sum. No published model has it.
        attention: back-end, see ``maskgen.models.attention``.
    """

    tokens: Literal["bits", "table"] = "bits"
    vocab_size: int = 128
    splits: int = 2
    num_classes: int = 1000
    axes: tuple[int, ...] = (16, 16)
    width: int = 1024
    layers: int = 24
    heads: int = 16
    mlp_width: int = 4096
    dropout: float = 0.1
    prenorm: bool = False
    attention: AttentionBackend = "sdpa"

    def __post_init__(self) -> None:
        if self.tokens not in ("bits", "table"):
            raise ValueError(f"tokens: got {self.tokens!r}, expected 'bits' or 'table'")
        if self.vocab_size < 2 or self.vocab_size & (self.vocab_size - 1):
            raise ValueError(f"vocab_size: got {self.vocab_size}, expected a power of two, 2 or more")
        if self.width % self.heads:
            raise ValueError(f"width {self.width} must be a multiple of heads {self.heads}")
        if min(self.splits, self.num_classes, self.layers, *self.axes) < 1:
            raise ValueError(
                f"splits, num_classes, layers, axes: got {self.splits}, {self.num_classes}, {self.layers}, {self.axes}, "
                "expected 1 or more of each"
            )
        check_backend(self.attention)

    @property
    def bits(self) -> int:
        """Bits of a sub-token, b."""
        return self.vocab_size.bit_length() - 1


class PackedProjection(nn.Module):
    """Queries, keys and values from one packed matrix, and the projection back: the weights of torch's attention.

    Args:
        width: D.
        heads: H.
        dropout: on attention weights, in training.
        attention: back-end.
    """

    def __init__(self, width: int, heads: int, dropout: float, attention: AttentionBackend) -> None:
        super().__init__()
        self.heads, self.dropout, self.backend = heads, dropout, attention
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)
        nn.init.xavier_uniform_(self.in_proj_weight)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, S, D]`` -> ``[B, S, D]``."""
        packed = F.linear(x, self.in_proj_weight, self.in_proj_bias)
        q, k, v = rearrange(packed, "B S (three H D) -> three B H S D", three=3, H=self.heads)
        dropout = self.dropout if self.training else 0.0
        mixed = attend(q, k, v, backend=self.backend, dropout=dropout)
        return self.out_proj(rearrange(mixed, "B H S D -> B S (H D)"))


class MaskBitAttention(nn.Module):
    """LN(x + attention(x)), or x + attention(LN x) with ``prenorm``.

    Args:
        config: sizes.
    """

    def __init__(self, config: MaskBitConfig) -> None:
        super().__init__()
        self.mha = PackedProjection(config.width, config.heads, config.dropout, config.attention)
        self.dropout = nn.Dropout(config.dropout)
        self.norm = nn.LayerNorm(config.width, eps=_EPS)
        self.prenorm = config.prenorm

    def forward(self, x: Tensor) -> Tensor:
        """``[B, S, D]`` -> ``[B, S, D]``."""
        if self.prenorm:
            return self.dropout(self.mha(self.norm(x))) + x
        return self.norm(self.dropout(self.mha(x)) + x)


class MaskBitMlp(nn.Module):
    """LN(x + MLP(x)), or x + MLP(LN x) with ``prenorm``; exact GELU, biases.

    Args:
        config: sizes.
    """

    def __init__(self, config: MaskBitConfig) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(config.width, config.mlp_width),
            nn.GELU(),
            nn.Linear(config.mlp_width, config.width),
            nn.Dropout(config.dropout),
        )
        self.norm = nn.LayerNorm(config.width, eps=_EPS)
        self.prenorm = config.prenorm

    def forward(self, x: Tensor) -> Tensor:
        """``[B, S, D]`` -> ``[B, S, D]``."""
        return self.net(self.norm(x)) + x if self.prenorm else self.norm(self.net(x) + x)


class MaskBitTransformer(MaskedTransformer):
    """LFQBert or Bert; the names of its weights are the official ones.

    Official ``forward`` without a drop mask turns every label into the null class, in the caller's tensor too. Here a
    row has no class exactly where its label is ``NO_LABEL`` (or there are no labels), and nothing of the caller changes.

    Args:
        config: sizes.
    """

    def __init__(self, config: MaskBitConfig) -> None:
        super().__init__()
        self.config = config
        self.vocab_size, self.num_codebooks = config.vocab_size, config.splits
        self.num_classes, self.null_class = config.num_classes, True
        width, count = config.width, math.prod(config.axes)
        self.class_emb = nn.Embedding(config.num_classes + 1, width)
        self.pos_emb = nn.Parameter(torch.empty(1, count + 1, width))
        self.first_layer = nn.Sequential(nn.LayerNorm(width, eps=_EPS), nn.Dropout(config.dropout))
        layers = (nn.Sequential(MaskBitAttention(config), MaskBitMlp(config)) for _ in range(config.layers))
        self.transformer = nn.ModuleDict({"layers": nn.Sequential(*layers)})
        if config.prenorm:
            self.norm_after_transformer = nn.LayerNorm(width, eps=_EPS)
        self.last_layer = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.LayerNorm(width, eps=_EPS))
        if config.tokens == "bits":
            self.input_proj = nn.Linear(config.splits * config.bits, width)
            self.prediction_layer = nn.Linear(width, config.splits * config.vocab_size)
        else:
            self.tok_emb_list = nn.ModuleList(nn.Embedding(config.vocab_size + 1, width) for _ in range(config.splits))
            self.bias = nn.ParameterList(torch.zeros(count, config.vocab_size) for _ in range(config.splits))
        nn.init.trunc_normal_(self.pos_emb, std=0.02)
        self.apply(_init)

    def forward(self, tokens: Tensor, cond: Cond, axes: Sequence[int] | None = None) -> Tensor:
        """See ``MaskedTransformer``; ``axes`` must be the trained grid, for positions are learned.

        Raises:
            ValueError: another number of tokens or sub-tokens, or another grid.
        """
        check_grid(tokens, axes, self.config.axes, self.config.splits)
        x = torch.cat((self._embedded(tokens), self._class_row(cond, tokens)), dim=1) + self.pos_emb
        x = self.first_layer(x)
        x = self.transformer["layers"](x)
        if self.config.prenorm:
            x = self.norm_after_transformer(x)
        return self._logits(self.last_layer(x)[:, :-1])

    def _embedded(self, tokens: Tensor) -> Tensor:
        """``[B, N, K]`` -> ``[B, N, D]``."""
        if self.config.tokens == "table":
            tables = zip(self.tok_emb_list, tokens.unbind(-1), strict=True)
            return torch.stack([table(ids) for table, ids in tables]).sum(0)
        shifts = torch.arange(self.config.bits, device=tokens.device)
        bits = ((tokens[..., None] >> shifts) & 1).to(self.pos_emb.dtype) * 2 - 1
        bits = bits.masked_fill((tokens == self.vocab_size)[..., None], 0.0)
        return self.input_proj(rearrange(bits, "B N K b -> B N (K b)"))  # sub-token 0 first, its lowest bit first

    def _class_row(self, cond: Cond, tokens: Tensor) -> Tensor:
        """``[B, 1, D]``."""
        cond.check_used(type(self).__name__, "labels")
        return self.class_emb(cond.class_ids(tokens, self.num_classes))[:, None]

    def _logits(self, x: Tensor) -> Tensor:
        """``[B, N, D]`` -> ``[B, N, K, V]``."""
        if self.config.tokens == "bits":
            return rearrange(self.prediction_layer(x), "B N (K V) -> B N K V", K=self.config.splits)
        # The last row of a table is the masked sub-token, which is never predicted.
        rows = [table[: self.vocab_size] for table in self.tok_emb_list.parameters()]
        return torch.stack([x @ row.t() + bias for row, bias in zip(rows, self.bias, strict=True)], dim=2)


def _init(module: nn.Module) -> None:
    """Normal of std 0.02 for linear layers and tables, biases 0, as officially."""
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.trunc_normal_(module.weight, std=0.02)
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)


def config_from(
    state: Mapping[str, Tensor], *, heads: int = 16, axes: Sequence[int] | None = None, splits: int | None = None
) -> MaskBitConfig:
    """Sizes of official weights, read from their names and shapes.

    Args:
        state: official name to weight.
        heads: not visible in the weights; 16 in the releases.
        axes: token grid; square by default.
        splits: sub-tokens of a token, needed only where neither the constant ``bits_to_indices`` nor the shapes tell.

    Raises:
        ValueError: when weights that fix a size are missing or sizes contradict each other.
    """
    state = _current(state)
    table = "tok_emb_list.0.weight" in state
    needed = ["class_emb.weight", "pos_emb", "transformer.layers.0.1.net.0.weight"]
    needed += [] if table else ["input_proj.weight", "prediction_layer.weight"]
    missing = [name for name in needed if name not in state]
    if missing:
        raise ValueError(f"these are no MaskBit generator weights: missing {missing}")
    if table:
        vocab_size = state["tok_emb_list.0.weight"].shape[0] - 1
        splits = len({match[1] for name in state if (match := re.match(r"tok_emb_list\.(\d+)\.", name))})
    else:
        splits = splits or _splits(state)
        vocab_size = state["prediction_layer.weight"].shape[0] // splits
    count = state["pos_emb"].shape[1] - 1
    grid = (math.isqrt(count),) * 2 if axes is None else tuple(axes)
    if math.prod(grid) != count:
        raise ValueError(f"pos_emb: got {count + 1} positions, expected the product of axes {grid} and one; give axes")
    classes, width = state["class_emb.weight"].shape
    return MaskBitConfig(
        tokens="table" if table else "bits",
        vocab_size=vocab_size,
        splits=splits,
        num_classes=classes - 1,
        axes=grid,
        width=width,
        layers=len({match[1] for name in state if (match := re.match(r"transformer\.layers\.(\d+)\.", name))}),
        heads=heads,
        mlp_width=state["transformer.layers.0.1.net.0.weight"].shape[0],
        prenorm="norm_after_transformer.weight" in state,
    )


def convert(state: Mapping[str, Tensor], config: MaskBitConfig) -> dict[str, Tensor]:
    """Official weights as the state dict of ``MaskBitTransformer(config)``; older files' ``token_emb`` is ``input_proj``.

    Args:
        state: official name to weight; the constant ``bits_to_indices`` may be there and is left out.
        config: sizes of the model to fill, usually ``config_from(state)``.

    Returns:
        State dict, complete and of the right shapes, sharing the memory of ``state``.

    Raises:
        ValueError: naming every weight that is missing, unexpected or of another shape.
    """
    found = _current(state)
    if config.tokens == "bits":
        found.pop("bits_to_indices", None)
    return renamed(found, empty_shapes(MaskBitTransformer, config), str, "MaskBit generator")


def _current(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {re.sub(r"^token_emb\.", "input_proj.", name): weight for name, weight in state.items()}


def _splits(state: Mapping[str, Tensor]) -> int:
    """K from the length b of ``bits_to_indices``, else from K b inputs and K 2^b outputs (b = 1 and 2 look alike)."""
    inputs, outputs = state["input_proj.weight"].shape[1], state["prediction_layer.weight"].shape[0]
    fitting = [k for k in range(1, inputs + 1) if inputs % k == 0 and k * 2 ** (inputs // k) == outputs]
    if "bits_to_indices" in state:
        fitting = [k for k in fitting if k * len(state["bits_to_indices"]) == inputs]
    if len(fitting) != 1:
        raise ValueError(
            f"splits: {inputs} bits in and {outputs} logits out fit {fitting or 'no number of'} splits; "
            "give splits, or weights of LFQBert"
        )
    return fitting[0]


PUBLISHED: dict[str, MaskBitConfig] = {
    f"maskbit_generator_{bits}bit": MaskBitConfig(vocab_size=2 ** (bits // 2)) for bits in (10, 12, 14, 16, 18)
}
"""Published name (hub user markweber) to full-size settings, all LFQBert; fits the tokenizer of as many bits."""
