"""Floating-point operations of a training step, for the model FLOPs utilisation (MFU).

Counted are matrix products alone, two operations a multiply-add, and three forward passes a step (one forward, two for the
two gradients), as PaLM counts (Chowdhery et al. 2022, arXiv 2204.02311, appendix B); attention is full, not causal. Of a
context, whose length nobody knows beforehand, the queries are counted and what is made of them, not its keys and values.
Recomputing for gradient checkpointing is not counted: it is a cost, not a use.

Shapes: N tokens, S sequence, D width, H heads, V vocabulary, K codebooks.
"""

import math
from typing import Any

from maskgen.models.bert import BertTransformer
from maskgen.models.modern import ModernTransformer


def training_flops(model: Any, rows: int) -> float:
    """Operations of forward and backward pass of ``rows`` examples on the trained grid; 0 for an unknown kind of model."""
    return 3.0 * forward_flops(model, rows)


def forward_flops(model: Any, rows: int) -> float:
    """Operations of one forward pass, from the model's config.

    Args:
        model: a ``BertTransformer`` or a ``ModernTransformer``; 0 is the answer for others.
        rows: examples.
    """
    if isinstance(model, BertTransformer):
        return float(rows * _bert(model))
    if isinstance(model, ModernTransformer):
        return float(_modern(model, rows))
    return 0.0


def _bert(model: BertTransformer) -> int:
    config = model.config
    S, D = model.prefix + math.prod(config.axes), config.width
    block = 2 * S * (4 * D * D + 2 * D * config.mlp_width) + 4 * S * S * D
    head = 2 * S * (D * D + D * config.vocab_size)
    return config.layers * block + head


def _modern(model: ModernTransformer, rows: int) -> int:
    config = model.config
    N, D = math.prod(config.axes), config.width
    hidden = 8 * round(config.mlp_ratio * D / 8)
    tokens = rows * N
    block = 2 * tokens * (4 * D * D + 3 * D * hidden) + 4 * tokens * N * D + 2 * rows * 6 * D * D
    head = 2 * tokens * D * config.num_codebooks * config.vocab_size + 2 * rows * 2 * D * D
    looks = sum(one.context is not None for one in model.blocks)
    return config.layers * block + looks * 4 * tokens * D * D + head + 2 * N * (D // config.heads) * D
