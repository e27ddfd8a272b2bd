"""The autoregressive sampler that parallel decoding is compared with: one token a forward, in raster order.

Stage 2 of VQGAN (Esser, Rombach and Ommer 2021, arXiv 2012.09841, section 3.2): a causal transformer of the GPT-2 kind
(pre-norm) over the class and the codes before a place predicts the code at that place. Width, layers, heads, feed-forward
and vocabulary are those of the masked model it stands beside.

Shapes: B batch, N grid tokens, L places seen by a forward, D width, H heads, V codes.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import nn

from maskgen.models.bert import BertConfig
from maskgen.noise import Noise, SeededNoise
from maskgen.precision import Linear, attention, linear_gelu

__all__ = ["Autoregressive", "CausalBlock", "Decoding", "Mode", "flops_of", "sample_autoregressive"]

Mode = Literal["cache", "prefix", "whole"]
"""``cache``: keys and values of earlier places are kept, a forward sees one place. ``prefix``: every token runs all places
so far again. ``whole``: every token runs all N places again, which is what static shapes cost."""

Cache = tuple[torch.Tensor, torch.Tensor]
"""Keys and values of one block, each ``[B, H, N, D / H]``."""


class CausalBlock(nn.Module):
    """x += Attention(LN(x)) over earlier places; x += MLP(LN(x))."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        width = config.width
        self.heads = config.heads
        self.attention_norm, self.mlp_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.key, self.value = (Linear(width, width) for _ in range(3))
        self.out = Linear(width, width)
        self.expand, self.contract = Linear(width, config.mlp_width), Linear(config.mlp_width, width)

    def forward(self, x: torch.Tensor, at: int = 0, cache: Cache | None = None) -> torch.Tensor:
        """``[B, L, D]`` -> ``[B, L, D]``; with a cache L is 1 and ``at`` is its place, whose key and value are kept."""
        normed = self.attention_norm(x)
        q, k, v = (
            layer(normed).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        if cache is not None:
            keys, values = cache
            keys[:, :, at : at + 1], values[:, :, at : at + 1] = k, v
            k, v = keys[:, :, : at + 1], values[:, :, : at + 1]
        attended = attention(q, k, v, causal=cache is None)
        x = x + self.out(attended.transpose(1, 2).flatten(2))
        return x + self.contract(linear_gelu(self.expand, self.mlp_norm(x)))


class Autoregressive(nn.Module):
    """Class and codes in, logits of the next code out."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.config, self.places = config, torch.Size(config.axes).numel()
        self.embedding = nn.Embedding(config.vocab_size + config.num_classes, config.width)
        self.position = nn.Embedding(self.places, config.width)
        self.blocks = nn.ModuleList(CausalBlock(config) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.width)
        self.head = Linear(config.width, config.vocab_size, bias=False)
        for parameter in self.parameters():
            if parameter.ndim > 1:
                nn.init.normal_(parameter, std=0.02)

    def forward(self, rows: torch.Tensor, at: int) -> torch.Tensor:
        """Logits ``[B, V]`` of the code at place ``at`` from ``rows`` ``[B, L]``, L > at; what stands behind is not seen."""
        x = self.embedding(rows) + self.position.weight[: rows.shape[1]]
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x[:, at]))

    def one(self, row: torch.Tensor, at: int, caches: Sequence[Cache]) -> torch.Tensor:
        """The same logits from the row ``[B]`` at place ``at`` alone and the caches of the blocks, which it adds to."""
        x = (self.embedding(row) + self.position.weight[at])[:, None]
        for block, cache in zip(self.blocks, caches, strict=True):
            x = block(x, at, cache)
        return self.head(self.norm(x[:, 0]))


class Decoding:
    """A grid being written: step ``at`` decides the code of that place.

    Args:
        model: see ``Autoregressive``.
        labels: class ids, long ``[B]``.
        noise: Gumbel noise, one call a place.
        mode: see ``Mode``.
    """

    def __init__(self, model: Autoregressive, labels: torch.Tensor, noise: Noise, mode: Mode) -> None:
        self.model, self.noise, self.mode = model, noise, mode
        config, places = model.config, model.places
        # The row at place 0 is the class; the code of place n stands at n + 1.
        self.rows = torch.zeros(len(labels), places + 1, dtype=torch.long, device=labels.device)
        self.rows[:, 0] = config.vocab_size + labels
        shape = (len(labels), config.heads, places, config.width // config.heads)
        like = model.head.weight
        # Zeros, not empty: the memory is touched here, not while a step is measured.
        self.caches = [(like.new_zeros(shape), like.new_zeros(shape)) for _ in model.blocks] if mode == "cache" else []

    @torch.no_grad()
    def step(self, at: int) -> None:
        """Draw the code of place ``at`` from the softmax."""
        if self.mode == "cache":
            logits = self.model.one(self.rows[:, at], at, self.caches)
        else:
            logits = self.model(self.rows[:, : at + 1 if self.mode == "prefix" else self.model.places], at)
        self.rows[:, at + 1] = self.noise.sample(at, logits.shape).add_(logits.float()).argmax(-1)

    @property
    def ids(self) -> torch.Tensor:
        """Codes so far, long ``[B, N]``."""
        return self.rows[:, 1:]

    @property
    def cache_bytes(self) -> int:
        """Memory of the caches."""
        return sum(tensor.nbytes for cache in self.caches for tensor in cache)


def sample_autoregressive(
    model: Autoregressive, labels: torch.Tensor, *, seeds: Sequence[int], mode: Mode = "cache"
) -> torch.Tensor:
    """All codes of one grid an item, long ``[B, N]``; the same for every mode."""
    decoding = Decoding(model, labels, SeededNoise(seeds, labels.device), mode)
    for at in range(model.places):
        decoding.step(at)
    return decoding.ids


def flops_of(config: BertConfig, mode: Mode) -> int:
    """Closed form of the FLOPs of one grid, a multiply-add as two; the causal square counted whole, as the counter does.

    A forward over L places that attend to A each: layers x (8 L D^2 + 4 L D M + 4 L A D), M the feed-forward's width, and
    the head of one place, 2 D V.
    """
    places, width = torch.Size(config.axes).numel(), config.width
    per_place = 8 * width**2 + 4 * width * config.mlp_width
    total = 0
    for at in range(places):
        seen, attended = {"cache": (1, at + 1), "prefix": (at + 1, at + 1), "whole": (places, places)}[mode]
        total += config.layers * seen * (per_place + 4 * attended * width) + 2 * width * config.vocab_size
    return total
