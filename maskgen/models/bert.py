"""The ``bert`` family: the transformer of official MaskGIT and MAGVIT, number for number (specs: post-norm BERT encoder).

Class and task ids live in the same embedding table as the codes and enter as prefix tokens; the head is tied to the table.

Shapes: B batch, N grid tokens, S = prefix + N sequence, D width, H heads, V codes, R table rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from maskgen.conditioning import Cond
from maskgen.models.attention import AttentionBackend, attend, check_backend
from maskgen.models.base import PartialTransformer, check_grid, init_layer, task_ids
from maskgen.models.partial import FeatureMemory, LayerMemory, Prepared, take
from maskgen.precision import Linear, linear_float32, linear_gelu

# Rows at the end of MAGVIT's multi-task table: the mask last, then a separator and the task prompts going down.
_SPECIAL_ROWS, _FIRST_PROMPT, _MOST_TASKS = 16, 2, 12  # the official padding id -15 ends the row of prompts


@dataclass(frozen=True, kw_only=True)
class BertConfig:
    """Sizes of a ``BertTransformer``; the defaults are official ImageNet 256.

    Attributes:
        vocab_size: V, number of codes.
        num_classes: class ids, rows V .. V + num_classes - 1 of the table; 0 for a model without classes.
        axes: token grid; its product is the number of learned positions after the prefix.
        width: D.
        layers: number of blocks.
        heads: H, dividing D.
        mlp_width: hidden width of the feed-forward.
        dropout: on embeddings, attention weights and both branches.
        null_class: an extra row for "no class", for training with label dropout, and a class prefix even without classes
            (MAGVIT); official MaskGIT has neither.
        num_tasks: task ids; any at all make a task prefix and 16 rows at the end of the table (MAGVIT's multi-task model
            has 5, see ``maskgen.sampling.commit.Prompt``). 0: a single task, one row at the end, for the mask.
        attention: back-end, see ``maskgen.models.attention``.
    """

    vocab_size: int = 1024
    num_classes: int = 1000
    axes: tuple[int, ...] = (16, 16)
    width: int = 768
    layers: int = 24
    heads: int = 16
    mlp_width: int = 3072
    dropout: float = 0.1
    null_class: bool = False
    num_tasks: int = 0
    attention: AttentionBackend = "sdpa"

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} must be a multiple of heads {self.heads}")
        if not 0 <= self.num_tasks <= _MOST_TASKS:
            raise ValueError(f"num_tasks: got {self.num_tasks}, expected 0 (a single task) to {_MOST_TASKS}")
        if self.vocab_size < 2 or self.num_classes < 0 or min(self.axes) < 1 or self.layers < 1:
            raise ValueError(
                f"got vocab_size {self.vocab_size}, num_classes {self.num_classes}, axes {self.axes}, layers {self.layers}; "
                "expected vocab_size of 2 or more, num_classes of 0 or more, positive axes and layers"
            )
        check_backend(self.attention)


class BertTransformer(PartialTransformer):
    """Post-norm encoder with learned positions and a tied head.

    The table holds V codes, the classes, the null class if any, and last the mask (official MaskGIT: 1024 + 1000 + 1 rows).
    With tasks there are 16 rows after the classes: the mask is the last, and task p is the row ``mask_row - 2 - p``.
    The sequence is [task] [class] [grid], of the prefix what the config has.
    """

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.config = config
        self.vocab_size, self.num_classes = config.vocab_size, config.num_classes
        self.num_codebooks, self.null_class, self.num_tasks = 1, config.null_class, config.num_tasks
        self._has_class = config.num_classes > 0 or config.null_class
        self.prefix = int(config.num_tasks > 0) + int(self._has_class)
        special = _SPECIAL_ROWS if config.num_tasks else 1
        rows = config.vocab_size + config.num_classes + int(config.null_class) + special
        positions = self.prefix + torch.Size(config.axes).numel()
        self.word_embedding = nn.Embedding(rows, config.width)
        self.position_embedding = nn.Embedding(positions, config.width)
        self.embedding_norm = nn.LayerNorm(config.width, eps=1e-12)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(BertBlock(config) for _ in range(config.layers))
        self.head = Linear(config.width, config.width)
        self.head_norm = nn.LayerNorm(config.width, eps=1e-12)
        self.head_bias = nn.Parameter(torch.zeros(rows))
        self.apply(init_layer)

    @property
    def mask_row(self) -> int:
        """Row of the mask in the table, the last one."""
        return self.word_embedding.num_embeddings - 1

    def forward(self, tokens: Tensor, cond: Cond, axes: Sequence[int] | None = None) -> Tensor:
        """See ``MaskedTransformer``; K must be 1 and ``axes`` the trained grid, for positions are learned.

        Raises:
            ValueError: another number of tokens or codebooks, labels missing where there is no null class, task ids for a
                model without tasks.
        """
        logits = self.table_logits(self.table_ids(tokens, cond, axes), self.vocab_size)
        return logits[:, self.prefix :, None]

    def prepare(self, cond: Cond, tokens: Tensor, axes: Sequence[int] | None = None) -> Prepared:
        """See ``PartialTransformer``: the rows of the prefix."""
        self._check_grid(tokens, axes)
        return Prepared(rows=(self._prefix_ids(cond, tokens),))

    def logits_at(
        self, tokens: Tensor, prepared: Prepared, positions: Tensor | None = None, memory: FeatureMemory | None = None
    ) -> Tensor:
        """See ``PartialTransformer``."""
        ids = torch.cat((prepared.rows[0], self._grid_ids(tokens)), dim=1)
        if memory is None or memory.positions is None:
            x = self.embed(ids)
        else:
            rows = memory.rows(self.prefix)
            x = self.word_embedding(ids.gather(1, rows)) + self.position_embedding(rows)
        if positions is not None:
            return self.head_logits(x, self.vocab_size, positions + self.prefix, memory)[:, :, None]
        return self.head_logits(x, self.vocab_size, None, memory)[:, self.prefix :, None]

    def table_ids(self, tokens: Tensor, cond: Cond, axes: Sequence[int] | None = None) -> Tensor:
        """The sequence as rows of the table, long ``[B, S]``: what ``table_logits`` takes. Arguments as in ``forward``."""
        self._check_grid(tokens, axes)
        return torch.cat((self._prefix_ids(cond, tokens), self._grid_ids(tokens)), dim=1)

    def _check_grid(self, tokens: Tensor, axes: Sequence[int] | None) -> None:
        check_grid(tokens, axes, self.config.axes, remedy=" (use maskgen.models.modern for others)")

    def _grid_ids(self, tokens: Tensor) -> Tensor:
        ids = tokens.squeeze(-1)
        return torch.where(ids == self.vocab_size, self.mask_row, ids)

    def _prefix_ids(self, cond: Cond, tokens: Tensor) -> Tensor:
        """Rows of the task and the class, long ``[B, prefix]``."""
        parts = []
        task = task_ids(self, cond, tokens)
        if task is not None:
            parts.append(self.mask_row - _FIRST_PROMPT - task)
        if self._has_class:
            parts.append(self._class_rows(cond, tokens))
        return torch.stack(parts, dim=1) if parts else tokens.new_zeros(len(tokens), 0)

    def table_logits(self, ids: Tensor, columns: int | None = None) -> Tensor:
        """The official forward: rows of the table in, logits over the table's first ``columns`` rows (all by default) out.

        Args:
            ids: long ``[B, S']``, S' at most S; prefix included.
            columns: how many rows of the table to predict.

        Returns:
            ``[B, S', columns]``.
        """
        return self.head_logits(self.embed(ids), columns)

    def embed(self, ids: Tensor) -> Tensor:
        """Rows of the table plus learned positions, before the norm: ``[B, S']`` -> ``[B, S', D]``."""
        return self.word_embedding(ids) + self.position_embedding.weight[: ids.shape[1]]

    def head_logits(
        self, x: Tensor, columns: int | None = None, at: Tensor | None = None, memory: FeatureMemory | None = None
    ) -> Tensor:
        """What comes after ``embed``: ``[B, S', D]`` -> ``[B, S', columns]``, or only the rows ``at`` ``[B, P]`` of it."""
        if memory is None:
            x = self.trunk(x)
        else:
            x = self.embedding_norm(x)
            for index, block in enumerate(self.blocks[:-1]):
                x = block(x, memory=memory.of_layer(index, self.prefix))
        for block in self.blocks[-1:]:
            x = block(x, at, None if memory is None else memory.of_layer(len(self.blocks) - 1, self.prefix))
        x = self.head_norm(linear_gelu(self.head, x))
        return linear_float32(x, self.word_embedding.weight[:columns], self.head_bias[:columns])

    def trunk(self, x: Tensor) -> Tensor:
        """From ``embed`` to the last block, which is not in it: ``[B, S', D]`` -> ``[B, S', D]``."""
        x = self.dropout(self.embedding_norm(x))
        for block in self.blocks[:-1]:
            x = block(x)
        return x

    def _class_rows(self, cond: Cond, tokens: Tensor) -> Tensor:
        if cond.labels is None and not self.null_class:
            raise ValueError("labels: got none, but this model has no null class; give one label an item")
        # Without a null class a dropped label would silently read the mask row; the trainer refuses label dropout there.
        return cond.class_ids(tokens, self.num_classes) + self.vocab_size


class BertBlock(nn.Module):
    """x = LN(x + Attention(x)); x = LN(x + MLP(x)), tanh GELU, biases everywhere, eps 1e-12."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        width = config.width
        self.heads, self.backend, self.dropout_p = config.heads, config.attention, config.dropout
        self.query, self.key, self.value = (Linear(width, width) for _ in range(3))
        self.out = Linear(width, width)
        self.attention_norm = nn.LayerNorm(width, eps=1e-12)
        self.expand = Linear(width, config.mlp_width)
        self.contract = Linear(config.mlp_width, width)
        self.mlp_norm = nn.LayerNorm(width, eps=1e-12)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, at: Tensor | None = None, memory: LayerMemory | None = None) -> Tensor:
        """``[B, S, D]`` -> ``[B, S, D]``, or ``[B, P, D]`` of the rows ``at`` ``[B, P]`` alone, which still see all S."""
        rows = x if at is None else take(x, at)
        x = self.attention_norm(self.dropout(self.attention(x, rows, memory)) + rows)
        return self.mlp_norm(self.dropout(self.feed_forward(x)) + x)

    def feed_forward(self, x: Tensor) -> Tensor:
        """``[..., D]`` -> ``[..., D]``."""
        hidden: Tensor = self.contract(linear_gelu(self.expand, x))
        return hidden

    def attention(self, x: Tensor, rows: Tensor | None = None, memory: LayerMemory | None = None) -> Tensor:
        """Multi-head attention with its output projection.

        Args:
            x: ``[B, S, D]``, what is seen.
            rows: ``[B, P, D]``, the queries; ``x`` itself if left out.
            memory: adds the keys and values of what is not in ``x``.

        Returns:
            ``[B, P, D]``.
        """
        queries = x if rows is None else rows
        q, k, v = (
            layer(seen).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for layer, seen in ((self.query, queries), (self.key, x), (self.value, x))
        )
        if memory is not None:
            k, v = memory.merge(k, v)
        dropout = self.dropout_p if self.training else 0.0
        return self.out(attend(q, k, v, backend=self.backend, dropout=dropout).transpose(1, 2).flatten(2))
