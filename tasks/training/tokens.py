"""The tokens that a second stage trains on, wherever they are: made now, made before into a file, or in token shards."""

from __future__ import annotations

from pathlib import Path

from maskgen.data import Source
from maskgen.tasks.data.base import SignalData
from maskgen.tasks.data.tokens.cache import cached_tokens, first_codebooks
from maskgen.tasks.data.tokens.shards import TokenShards, TokenShardSource
from maskgen.tokenizers.base import Tokenizer

__all__ = ["check_shards", "doing", "training_tokens"]


def training_tokens(
    tokenizer: Tokenizer, source: Source | None, key: str, cache: Path, codebooks: int, *, views: int = 1, seed: int = 0
) -> Source | None:
    """Tokens of a source.

    Args:
        tokenizer: turns signals into tokens, on the device it is on.
        source: signals, or tokens of shards; None has none.
        key: name of the signals in its batches.
        cache: file that tokens are kept in.
        codebooks: how many codebooks are kept.
        views: passes over the source, each with seeds of its own; shards have theirs already.
        seed: of the augmentation.
    """
    if source is None:
        return None
    if isinstance(source, TokenShardSource):
        return source.first_codebooks(codebooks)
    return first_codebooks(cached_tokens(source, tokenizer, cache, key=key, views=views, seed=seed), codebooks)


def check_shards(data: SignalData, identity: str, views: int) -> None:
    """Refuse token shards of another tokenizer, and views that nobody can give.

    Args:
        data: any; only ``TokenShards`` are looked at.
        identity: fingerprint of the tokenizer.
        views: what the user asks for, which shards cannot give.

    Raises:
        ValueError: another tokenizer's shards, views asked of shards, or none at all.
    """
    if views < 1:
        raise ValueError(f"views: got {views}, expected at least 1")
    if not isinstance(data, TokenShards):
        return
    data.check(identity)
    if views != 1:
        raise ValueError(f"views: got {views}, but the token shards hold {data.views} view(s) already; leave it out")


def doing(data: SignalData, views: int) -> str:
    """What a user is told before it begins."""
    if isinstance(data, TokenShards):
        return f"reading tokens, {len(data.train())}"
    return f"tokenizing {len(data.train())} {'images' if data.modality == 'image' else 'sounds'}, {views} view(s) each"
