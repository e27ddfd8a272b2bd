"""UViTBert, the generator of TiTok-S-128 (Yu et al. 2024, arXiv 2406.07550; the blocks of U-ViT, Bao et al., 2209.12152).

The vocabulary and the order of the sequence are ImageBert's. Half of the blocks come before a middle block and half after;
each of the later ones first joins its input with the output of its counterpart by a linear layer. Pre-norm, LayerNorm eps
1e-5, exact GELU, and no norm on the embeddings. Modules are named as in the official files.

Shapes: B batch, N tokens, S = 1 + N sequence, D width, H heads, V codes.
"""

import math
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from einops import rearrange
from torch import Tensor, nn

from maskgen.checkpoint import empty_shapes, renamed
from maskgen.conditioning import Cond
from maskgen.models.attention import attend
from maskgen.models.base import init_layer
from maskgen.published.onedtok.imagebert import OneDTokConfig, OneDTokTransformer, SizesReader, prefixed_rows


@dataclass(frozen=True, kw_only=True)
class UViTBertConfig(OneDTokConfig):
    """Sizes of a ``UViTBert``; the defaults are TiTok-S-128. See ``OneDTokConfig``.

    Attributes:
        layers: blocks before and after the middle one together, an even number; the middle block is not counted.

    Raises:
        ValueError: an odd number of layers, and as ``OneDTokConfig``.
    """

    axes: tuple[int, ...] = (128,)
    width: int = 1024
    layers: int = 20
    mlp_width: int = 4096

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.layers % 2:
            raise ValueError(
                f"layers: got {self.layers}, expected an even number, half before and half after the middle"
            )


PUBLISHED: dict[str, UViTBertConfig] = {"generator_titok_s128_imagenet": UViTBertConfig()}
"""Full-size settings by the name of the Hugging Face repository."""


class UViTBert(OneDTokTransformer):
    """Class first, then the tokens, through a pre-norm encoder with long skips; see the head of this file."""

    def __init__(self, config: UViTBertConfig) -> None:
        super().__init__(config)
        half, width = config.layers // 2, config.width
        self.embeddings = nn.Embedding(config.vocab_size + config.num_classes + 2, width)
        self.pos_embed = nn.Parameter(torch.empty(1, 1 + math.prod(config.axes), width))
        self.dropout = nn.Dropout(config.dropout)
        self.in_blocks = nn.ModuleList(UViTBlock(config, skip=False) for _ in range(half))
        self.mid_block = UViTBlock(config, skip=False)
        self.out_blocks = nn.ModuleList(UViTBlock(config, skip=True) for _ in range(half))
        self.norm = nn.LayerNorm(width, eps=1e-5)
        self.lm_head = nn.Linear(width, config.vocab_size)
        nn.init.trunc_normal_(self.pos_embed, std=0.02, a=-0.04, b=0.04)
        self.apply(init_layer)

    def forward(self, tokens: Tensor, cond: Cond, axes: Sequence[int] | None = None) -> Tensor:
        """See ``MaskedTransformer``; K must be 1 and ``axes`` the trained grid.

        Raises:
            ValueError: another number of tokens or codebooks, or another grid.
        """
        x = self.dropout(self.embeddings(prefixed_rows(self.config, tokens, cond, axes)) + self.pos_embed)
        skips = []
        for block in self.in_blocks:
            x = block(x)
            skips.append(x)
        x = self.mid_block(x)
        for block in self.out_blocks:
            x = block(x, skips.pop())
        return self.lm_head(self.norm(x)[:, 1:])[:, :, None]


class UViTBlock(nn.Module):
    """x = Linear(x, skip); x += Attention(LN x); x += MLP(LN x)."""

    def __init__(self, config: UViTBertConfig, *, skip: bool) -> None:
        super().__init__()
        width = config.width
        self.skip_linear = nn.Linear(2 * width, width) if skip else None
        self.norm1 = nn.LayerNorm(width, eps=1e-5)
        self.attn = UViTAttention(config)
        self.norm2 = nn.LayerNorm(width, eps=1e-5)
        layers = {"fc1": nn.Linear(width, config.mlp_width), "gelu": nn.GELU()}
        self.mlp = nn.Sequential(OrderedDict(layers, fc2=nn.Linear(config.mlp_width, width)))
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, skip: Tensor | None = None) -> Tensor:
        """``[B, S, D]`` -> ``[B, S, D]``; ``skip`` ``[B, S, D]`` for the blocks behind the middle, and only for them."""
        if self.skip_linear is not None:
            assert skip is not None
            x = self.skip_linear(torch.cat((x, skip), dim=-1))
        x = x + self.dropout(self.attn(self.norm1(x)))
        return x + self.dropout(self.mlp(self.norm2(x)))


class UViTAttention(nn.Module):
    """Self-attention; one bias-free layer makes queries, keys and values, in this order, each head by head."""

    def __init__(self, config: UViTBertConfig) -> None:
        super().__init__()
        self.heads, self.backend = config.heads, config.attention
        self.qkv = nn.Linear(config.width, 3 * config.width, bias=False)
        self.proj = nn.Linear(config.width, config.width)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, S, D]`` -> ``[B, S, D]``."""
        q, k, v = rearrange(self.qkv(x), "B S (three H D) -> three B H S D", three=3, H=self.heads)
        return self.proj(rearrange(attend(q, k, v, backend=self.backend), "B H S D -> B S (H D)"))


config_from: Final = SizesReader(
    config=UViTBertConfig,
    family="UViTBert",
    table="embeddings.weight",
    positions="pos_embed",
    head="lm_head.weight",
    mlp="mid_block.mlp.fc1.weight",
    block=r"in_blocks\.(\d+)\.",
    block_layers=2,
)


def convert(state: Mapping[str, Tensor], config: UViTBertConfig) -> dict[str, Tensor]:
    """Official weights as the state dict of ``UViTBert(config)``: the names are the same, so this is a check.

    Args:
        state: official name to tensor.
        config: see ``config_from``.

    Raises:
        ValueError: naming every weight that is missing, unexpected or of another shape.
    """
    return renamed(state, empty_shapes(UViTBert, config), str, "UViTBert weights")
