"""Token shards: what ``maskgen tokenize`` writes and stage 2 trains on, mapped into memory and read row by row.

A folder of them holds ``tokens.json``, which says what they are, and files of ``shard_size`` examples each:
``train-00000.safetensors`` and so on, ``test-00000.safetensors`` for held-out ones. The metadata of each file name the
tokenizer by a hash of its weights.

Shapes: B batch, N tokens, K codebooks, M examples of a shard.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from maskgen.checkpoint import read_json
from maskgen.data import Batch
from maskgen.tasks.conditions.preparation import Preparation
from maskgen.tasks.data.base import SignalData
from maskgen.tasks.data.identity import short_hash
from maskgen.tasks.data.patience import patiently
from maskgen.tasks.data.texts import Texts, distinct
from maskgen.tasks.data.tokens.cache import read_tokens

_NEEDED = {"tokenizer", "modality", "signal_size", "class_names", "shard_size", "train", "test", "views", "complete"}

UNDECISIVE = {"train", "test", "complete", "made"}
"""What ``tokens.json`` says beside what decides the tokens."""


class TokenShards(SignalData):
    """A folder of token shards as data to train a transformer on; batches hold ``tokens`` long ``[B, N, K]``.

    Args:
        root: the folder, see ``maskgen tokenize``.
        captions: whether its captions are used, where it holds any.

    Attributes:
        tokenizer: fingerprint of the tokenizer that made the tokens.
        views: how many augmented views of each example there are.

    Raises:
        FileNotFoundError: no such folder, or a shard is missing.
        ValueError: an unfinished, foreign or damaged folder.
    """

    key: ClassVar[str] = "tokens"

    def __init__(self, root: Path, *, captions: bool = True) -> None:
        place = Path(root) / "tokens.json"
        if not place.is_file():
            raise FileNotFoundError(
                f"root: got {root}, which holds no tokens (no tokens.json); make them: maskgen tokenize"
            )
        found = read_json(place)
        if not isinstance(found, dict) or not found.keys() >= _NEEDED:
            raise ValueError(f"{place}: not written by maskgen tokenize; name another folder")
        if not found["complete"]:
            raise ValueError(
                f"{root}: its tokens are not complete; run the same maskgen tokenize again to go on with it"
            )
        self.root = str(root)
        self.modality = str(found["modality"])  # type: ignore[misc]
        self.size = tuple(int(side) for side in found["signal_size"])
        self.tokenizer, self.views = str(found["tokenizer"]), int(found["views"])
        self._found: dict[str, Any] = found
        self._captions = captions and bool(found.get("captions"))
        missing = [path for split in ("train", "test") for path in self._paths(split) if not path.is_file()]
        if missing:
            raise FileNotFoundError(f"{missing[0]}: {len(missing)} token shard(s) missing; run maskgen tokenize again")

    @property
    def class_names(self) -> tuple[str, ...]:
        """Those of the data that the tokens were made of."""
        return tuple(self._found["class_names"])

    @property
    def has_captions(self) -> bool:
        """Whether the data that the tokens were made of had captions, and they are used."""
        return self._captions

    @property
    def prepared(self) -> Preparation:
        """Of the data that the tokens were made of."""
        return Preparation.of(self._found.get("data", {}))

    def train(self) -> TokenShardSource:
        """All views of all training examples."""
        return self._source("train")

    def test(self) -> TokenShardSource | None:
        """Held-out examples, if there were any."""
        return self._source("test") if self._found["test"] else None

    def check(self, fingerprint: str) -> None:
        """Refuse another tokenizer than the one that made the tokens.

        Args:
            fingerprint: see ``maskgen.checkpoint.fingerprint``.

        Raises:
            ValueError: it is another one.
        """
        if fingerprint != self.tokenizer:
            raise ValueError(
                f"{self.root}: its tokens were made by the tokenizer {self.tokenizer}, but this one is {fingerprint}; name "
                "the tokenizer that made them, or tokenize again into another folder"
            )

    def _paths(self, split: str) -> list[Path]:
        count, size = int(self._found[split]), int(self._found["shard_size"])
        return [shard_path(Path(self.root), split, number) for number in range(-(-count // size))]

    def _source(self, split: str) -> TokenShardSource:
        stamp = shard_stamp(self.tokenizer, made_by(self._found))
        count, size = int(self._found[split]), int(self._found["shard_size"])
        return TokenShardSource(self._paths(split), count, size, stamp, has_captions=self._captions)


class TokenShardSource:
    """Rows of token shards; only the pages that are needed are read from the disk.

    Args:
        paths: the shards, all of ``size`` examples but the last.
        count: how many examples there are.
        size: examples of a shard.
        stamp: that each shard must bear, see ``shard_stamp``.
        codebooks: how many codebooks to read; 0 for all.
        has_captions: whether batches hold ``caption`` long ``[B]``, numbers of ``texts``.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        count: int,
        size: int,
        stamp: dict[str, str],
        codebooks: int = 0,
        *,
        has_captions: bool = False,
    ) -> None:
        self.paths, self.count, self.size = list(paths), count, size
        self.stamp, self.codebooks, self.has_captions = stamp, codebooks, has_captions
        self._shards: list[dict[str, np.ndarray] | None] = [None] * len(self.paths)

    def __len__(self) -> int:
        return self.count

    def first_codebooks(self, codebooks: int) -> TokenShardSource:
        """The same examples with their first codebooks only."""
        return TokenShardSource(
            self.paths, self.count, self.size, self.stamp, codebooks, has_captions=self.has_captions
        )

    @cached_property
    def texts(self) -> Texts:
        """Each different caption of all shards once: of a shard's own in their order, of the shards in theirs."""
        return self._numbered[0]

    @cached_property
    def _numbered(self) -> tuple[Texts, list[np.ndarray]]:
        """``texts``, and the number among them of each text of each shard."""
        own = [Texts.among(self._read(shard)) or Texts.of(()) for shard in range(len(self.paths))]
        texts, numbers = distinct(text for some in own for text in some)
        return texts, np.split(numbers.numpy(), np.cumsum([len(some) for some in own])[:-1])

    def identity(self) -> dict[str, Any]:
        """See ``maskgen.tasks.data.identity.Identified``."""
        return {**json.loads(self.stamp["maskgen"]), "half": self.paths[0].name if self.paths else ""}

    def batch(self, indices: Sequence[int], seeds: Sequence[int]) -> Batch:
        """See ``maskgen.data.Source``; uses no randomness.

        Raises:
            ValueError: a damaged shard, or one of another tokenizer.
            maskgen.data.DataUnavailable: a shard that is gone.
        """
        rows = []
        for index in indices:
            shard, row = divmod(int(index), self.size)
            rows.append((self._shards[shard] or self._open(shard), row))
        first = rows[0][0]["tokens"]
        depth = self.codebooks or first.shape[2]
        tokens = np.empty((len(rows), first.shape[1], depth), first.dtype)
        for place, (arrays, row) in enumerate(rows):
            tokens[place] = arrays["tokens"][row, :, :depth]
        batch = {"tokens": torch.from_numpy(tokens).long()}
        for name in ("labels", "caption"):
            if name in rows[0][0]:
                batch[name] = torch.tensor([int(arrays[name][row]) for arrays, row in rows])
        return batch

    def captions(self, indices: Sequence[int], seeds: Sequence[int]) -> list[str]:
        """See ``maskgen.tasks.data.captions.Captioned``: those that were drawn when the tokens were made."""
        return [self.texts[int(number)] for number in self.batch(indices, seeds)["caption"]]

    def _open(self, shard: int) -> dict[str, np.ndarray]:
        """The arrays of a shard that batches are made of; captions are numbered among all ``texts``."""
        tensors = self._read(shard)
        opened: dict[str, np.ndarray] = {
            name: tensors[name].numpy() for name in ("tokens", "labels") if name in tensors
        }
        if self.has_captions:
            opened["caption"] = self._numbered[1][shard][tensors["caption"].numpy()]
        self._shards[shard] = opened
        return opened

    def _read(self, shard: int) -> dict[str, Tensor]:
        path = self.paths[shard]

        def ask() -> tuple[dict[str, Tensor], dict[str, str]]:
            path.stat()  # a missing file may come back, a damaged one will not
            return read_tokens(path)

        tensors, metadata = patiently(str(path), ask)
        expected = min(self.size, self.count - shard * self.size)
        found, wanted = (json.loads(told.get("maskgen", "{}")) for told in (metadata, self.stamp))
        if found.get("tokenizer") != wanted["tokenizer"]:
            raise ValueError(
                f"{path}: its tokens were made by the tokenizer {found.get('tokenizer')}, expected {wanted['tokenizer']}; "
                "delete it and run maskgen tokenize again"
            )
        if found != wanted:
            raise ValueError(
                f"{path}: made of other data or settings ({found.get('made')}) than tokens.json tells "
                f"({wanted['made']}); delete it and run maskgen tokenize again"
            )
        if (
            "tokens" not in tensors
            or len(tensors["tokens"]) != expected
            or (self.has_captions and "caption" not in tensors)
        ):
            raise ValueError(f"{path}: expected {expected} examples; delete it and run maskgen tokenize again")
        return tensors

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_shards": [None] * len(self.paths)}


def shard_stamp(tokenizer: str, made: str) -> dict[str, str]:
    """Metadata of a shard, in one entry: several would be written in a random order, and equal shards would differ.

    Args:
        tokenizer: its fingerprint.
        made: hash of all that decides what is in the shards.
    """
    return {"maskgen": json.dumps({"tokenizer": tokenizer, "made": made})}


def shard_path(folder: Path, split: str, number: int) -> Path:
    """Where a shard is.

    Args:
        folder: of all of them.
        split: ``train`` or ``test``.
        number: from 0.
    """
    return folder / f"{split}-{number:05d}.safetensors"


def made_by(found: dict[str, Any]) -> str:
    """Hash of all that decided the tokens when the first shard was made; earlier versions did not write it down.

    Args:
        found: content of ``tokens.json``.
    """
    return str(
        found.get("made") or short_hash({name: value for name, value in found.items() if name not in UNDECISIVE})
    )
