"""Captions encoded once: a table of features that batches look up, in parts that are kept on disk and mapped into memory.

A part holds the features of up to ``PART`` texts in float16 (relative error 5e-4), or in bfloat16 where values lie
beyond its range, and says which encoder made them of which texts.

Shapes: M texts, B rows, L tokens of a text, D width of the context, P width of the pooled vector.
"""

from __future__ import annotations

import contextlib
import json
import os
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain, islice
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor
from tqdm.auto import tqdm

from maskgen.checkpoint import atomic_file
from maskgen.conditioning import Cond
from maskgen.data import Batch, Source
from maskgen.models.base import MaskedTransformer
from maskgen.tasks.conditions.text.base import TextEncoder
from maskgen.tasks.data.texts import Texts, distinct
from maskgen.tasks.data.tokens.cache import CaptionedTokens, read_tokens
from maskgen.tasks.data.tokens.shards import TokenShardSource

PART = 4096
"""Texts of a file: 0.5 GB of CLIP-L's features."""

_BATCH, _QUIET = 64, 2  # texts that are encoded together; seconds before the progress bar shows

_FIELDS = ("context", "context_mask", "pooled")

Say = Callable[[str], None]


class TextTable:
    """Features of M texts.

    Args:
        parts: one after the other; ``context`` ``[., L, D]`` and, where the encoder gives them, ``context_mask`` and
            ``pooled``.
        absent: row of the text that stands for none (``MaskedTransformer.drops_text``): nothing of its context is real.
    """

    def __init__(self, parts: Sequence[Mapping[str, Tensor]], absent: int | None = None) -> None:
        self.parts, self.absent = list(parts), absent
        self._starts = np.cumsum([0, *(len(part["context"]) for part in parts)])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def rows(self, numbers: Tensor, fields: Iterable[str] = _FIELDS) -> Batch:
        """Features of some texts, float32 (the mask bool); ``numbers`` long ``[B]``."""
        found: Batch = {}
        places = np.searchsorted(self._starts, numbers.numpy(), side="right") - 1
        for name in fields:
            if name not in self.parts[0]:
                continue
            example = self.parts[0][name]
            kind = torch.bool if name == "context_mask" else torch.float32
            found[name] = torch.empty(len(numbers), *example.shape[1:], dtype=kind)
            for place in np.unique(places):
                mine = torch.from_numpy(places == place)
                found[name][mine] = self.parts[place][name][numbers[mine] - int(self._starts[place])].to(kind)
        if self.absent is not None and "context" in found:
            mask = found.get("context_mask", torch.ones(found["context"].shape[:2], dtype=torch.bool))
            found["context_mask"] = mask & (numbers != self.absent)[:, None]
        return found


class TextSource:
    """Tokens with the features of their captions: batches hold ``context``, ``context_mask`` and ``pooled``.

    Args:
        source: batches with ``caption`` long ``[B]``.
        table: the features.
        numbers: long, the row of the table of each caption.
        fields: which of the features a batch gets.
    """

    def __init__(self, source: Source, table: TextTable, numbers: Tensor, fields: Sequence[str] = _FIELDS) -> None:
        self.source, self.table, self.numbers, self.fields = source, table, numbers, fields

    def __len__(self) -> int:
        return len(self.source)

    def batch(self, indices: Sequence[int], seeds: Sequence[int]) -> Batch:
        """See ``maskgen.data.Source``."""
        batch = dict(self.source.batch(indices, seeds))
        return batch | self.table.rows(self.numbers[batch.pop("caption")], self.fields)


def fields_of(model: MaskedTransformer) -> tuple[str, ...]:
    """Which features a model takes."""
    return (*(_FIELDS[:2] if model.context_width else ()), *(_FIELDS[2:] if model.pooled_width else ()))


def all_texts(sources: Sequence[Source | None]) -> tuple[Texts, list[Tensor]]:
    """Every caption of some sources once, the empty prompt last unless it is a caption; numbers of each source's among them.

    Args:
        sources: with captions; None stands for no examples.
    """
    own = [
        source.texts if isinstance(source, CaptionedTokens | TokenShardSource) else Texts.of(()) for source in sources
    ]
    texts, numbers = distinct(chain(*own, [""]))
    return texts, list(numbers[:-1].split([len(some) for some in own]))


def empty_prompt(texts: Texts, table: TextTable, fields: Sequence[str] = _FIELDS) -> Cond:
    """The features of the empty prompt, one row; ``texts`` are those of the table."""
    rows = table.rows(torch.tensor([empty_number(texts)]), fields)
    return Cond(context=rows.get("context"), context_mask=rows.get("context_mask"), pooled=rows.get("pooled"))


def empty_number(texts: Texts) -> int:
    """The number of the empty prompt, which ``all_texts`` sees to."""
    return next(number for number, text in enumerate(texts) if not text)


def encode_texts(
    texts: Texts,
    encoder: TextEncoder,
    folder: Path,
    *,
    again: bool = False,
    say: Say = lambda text: None,
    share: tuple[int, int] = (0, 1),
) -> TextTable:
    """The features of texts, made once and kept.

    Of several processes on a machine one encodes, and the others wait for its files.

    Args:
        texts: M of them.
        encoder: frozen.
        folder: of the parts; those that are there already are used again.
        again: make them anew, whatever the folder holds.
        say: told what begins, and why parts are made anew.
        share: this process makes every n-th part, as (which, n); another share leaves the table incomplete, so ask again.

    Raises:
        ValueError: the folder holds the features of another encoder, a damaged file, or features that are not finite.
        OSError: the folder cannot be written to.
    """
    spans = [range(first, min(first + PART, len(texts))) for first in range(0, len(texts), PART)]
    owns = [Texts.of(texts[number] for number in span) for span in spans]
    identity = encoder.identity()
    folder.mkdir(parents=True, exist_ok=True)
    alone = os.environ.get("LOCAL_WORLD_SIZE", "1") == "1" or share[1] > 1
    with contextlib.nullcontext() if alone else FileLock(folder / ".lock"):
        fresh = again and (share[1] > 1 or os.environ.get("LOCAL_RANK", "0") == "0")
        kept = [_kept(_path(folder, number), identity, own, fresh, say) for number, own in enumerate(owns)]
        missing = [number for number, part in enumerate(kept) if part is None and number % share[1] == share[0]]
        if missing:
            say(f"text: encoding {sum(len(owns[number]) for number in missing)} different captions")
            _make(encoder, identity, [(_path(folder, number), owns[number]) for number in missing])
        for old in set(folder.glob("text-*.safetensors")) - {_path(folder, number) for number in range(len(spans))}:
            old.unlink(missing_ok=True)  # of more captions than there are now
        for number in missing:
            kept[number] = read_tokens(_path(folder, number))[0]
    return TextTable([part for part in kept if part is not None])


def check_encoder(folder: Path, encoder: TextEncoder) -> None:
    """Refuse an encoder other than the one whose features a folder holds.

    Args:
        folder: of ``encode_texts``; it need not exist.
        encoder: the one at hand.

    Raises:
        ValueError: another encoder, or a damaged file.
    """
    first = _path(folder, 0)
    if first.is_file():
        _check_stamp(first, json.loads(read_tokens(first)[1].get("maskgen", "{}")), encoder.identity())


def _path(folder: Path, number: int) -> Path:
    return folder / f"text-{number:05d}.safetensors"


def _stamp(identity: str, texts: Texts) -> dict[str, str]:
    """In one entry, see ``maskgen.tasks.data.tokens.shards.shard_stamp``."""
    return {"maskgen": json.dumps({"encoder": identity, "texts": texts.digest()})}


def _kept(path: Path, identity: str, texts: Texts, again: bool, say: Say) -> dict[str, Tensor] | None:
    """The part that a file holds; None if it has to be made."""
    if again or not path.is_file():
        return None
    tensors, metadata = read_tokens(path)
    _check_stamp(path, json.loads(metadata.get("maskgen", "{}")), identity)
    if metadata != _stamp(identity, texts):
        say(f"{path}: captions are encoded anew, the kept ones are others")
        return None
    return tensors


def _check_stamp(path: Path, stamp: Mapping[str, str], identity: str) -> None:
    if stamp.get("encoder") != identity:
        raise ValueError(
            f"{path}: holds features of the text encoder {stamp.get('encoder', 'of another kind')}, but this one is "
            f"{identity}; name that encoder, choose another output folder, or give --again to make them anew"
        )


def _make(encoder: TextEncoder, identity: str, parts: Sequence[tuple[Path, Texts]]) -> None:
    """Write some parts."""
    encoder.to("cuda" if torch.cuda.is_available() else "cpu")
    quiet, total, cut = os.environ.get("LOCAL_RANK", "0") != "0", sum(len(texts) for _, texts in parts), list[str]()
    with tqdm(total=total, desc="captions", disable=quiet, delay=_QUIET) as bar:
        for path, texts in parts:
            made: list[dict[str, Tensor]] = []
            left = iter(texts)
            while some := list(islice(left, _BATCH)):
                made.append(_encode(encoder, some))
                cut += [text for text in some if encoder.cut(text)]
                bar.update(len(some))
            joined = {name: _joined([one[name] for one in made]) for name in made[0]}
            with atomic_file(path) as temporary:
                try:
                    save_file(joined, temporary, metadata=_stamp(identity, texts))
                except SafetensorError as error:
                    raise OSError(f"{path}: cannot be written ({error})") from None
    if cut:
        told = f"text: {len(cut)} of {total} captions are longer than the text encoder's window and were cut, such as"
        warnings.warn(f"{told} {cut[0]:.60}...", stacklevel=3)


def _joined(batches: Sequence[Tensor]) -> Tensor:
    """One type for a part: half precision only if all of it fits."""
    whole = torch.cat(list(batches))
    return whole.bfloat16() if whole.dtype == torch.float32 else whole


@torch.no_grad()
def _encode(encoder: TextEncoder, texts: Sequence[str]) -> dict[str, Tensor]:
    cond = encoder.encode(texts)
    found = {name: value.cpu() for name in _FIELDS if (value := getattr(cond, name)) is not None}
    for name, value in found.items():
        if value.dtype == torch.bool:
            continue
        if not value.isfinite().all():
            bad = next(number for number, row in enumerate(value) if not row.isfinite().all())
            raise ValueError(f"text: the encoder's features of {texts[bad]!r:.80} are not finite; use it in float32")
        fits = value.abs().max() <= torch.finfo(torch.float16).max
        found[name] = value.to(torch.float16 if fits else torch.bfloat16).contiguous()
    return found
