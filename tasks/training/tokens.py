"""The tokens that a second stage trains on, wherever they are: made now, made before into a file, or in token shards."""

from pathlib import Path

import torch

from maskgen.data import Source
from maskgen.tasks.data.base import SignalData
from maskgen.tasks.data.tokens.cache import cached_tokens, first_codebooks
from maskgen.tasks.data.tokens.coarse import SmallPictures
from maskgen.tasks.data.tokens.shards import TokenShards, TokenShardSource
from maskgen.tasks.training.runs import Say
from maskgen.tokenizers.base import Tokenizer


def training_tokens(
    tokenizer: Tokenizer,
    data: SignalData,
    folder: Path,
    codebooks: int,
    *,
    views: int,
    seed: int,
    title: str,
    again: bool,
    say: Say,
    coarse: SmallPictures | None = None,
) -> tuple[Source, Source | None]:
    """Tokens of the training examples and, where there are any, of the held-out ones.

    Args:
        tokenizer: turns signals into tokens, on a GPU where there is one.
        data: signals, or shards of tokens.
        folder: of the files that tokens are kept in.
        codebooks: how many codebooks are kept.
        views: passes over the training examples, each with seeds of its own; shards have theirs already.
        seed: of the augmentation.
        title: of the stage, for ``say``.
        again: make them anew, whatever is kept.
        say: told what begins.
        coarse: gives the tokens of the smaller pictures of a cascade.
    """
    for one in (tokenizer, *(() if coarse is None else (coarse.tokenizer,))):
        one.to("cuda" if torch.cuda.is_available() else "cpu")
    if isinstance(data, TokenShards):
        say(f"{title}: reading tokens, {len(data.train())}")
    else:
        what = {"image": "images", "audio": "sounds"}.get(data.modality, "examples")
        say(f"{title}: tokenizing {len(data.train())} {what}, {views} view(s) each")

    def tokens(source: Source, name: str, views: int, seed: int) -> Source:
        if isinstance(source, TokenShardSource):
            return source.first_codebooks(codebooks)
        path = folder / f"{name}.safetensors"
        told = {"key": data.key, "views": views, "seed": seed, "coarse": coarse, "again": again, "say": say}
        kept = cached_tokens(source, tokenizer, path, **told)  # type: ignore[arg-type]
        return first_codebooks(kept, codebooks)

    test = data.test()
    held_out = None if test is None else tokens(test, "test", 1, 0)
    return tokens(data.train(), "train", views, seed), held_out
