"""Tar files of samples (WebDataset's layout) with an index, so that any sample can be read without those before it.

1. Members ``dir/name.ext`` and ``dir/name.other`` of a shard are one sample; its key is ``dir/name``. A member that comes
   again is skipped and counted.
2. Each shard is read through once. What was found (where the picture is, its label, its captions) is kept in a small file.
3. From then on a sample is one range of bytes: the order is free, and a run goes on at any place.

Shapes: M samples of a shard.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import tarfile
import warnings
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import IO, Any

import numpy as np
import torch
from filelock import FileLock
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from maskgen.checkpoint import atomic_file
from maskgen.data import item_seed
from maskgen.tasks.data.broken import Broken
from maskgen.tasks.data.captions import Captions, captioned, ending_of, read_captions
from maskgen.tasks.data.identity import Compare, listing_identity, short_hash
from maskgen.tasks.data.images.places import ShardPlace
from maskgen.tasks.data.images.sources import Encoded
from maskgen.tasks.data.texts import Texts
from maskgen.tasks.media.shelf import PICTURE_SUFFIXES, is_hidden

_VERSION = "3"

_NO_PICTURE, _NO_LABEL, _CUT_OFF = -1, -2, -3

_REASONS = {
    _NO_PICTURE: "no picture in the sample, expected a member such as .jpg, .png or .webp",
    _NO_LABEL: "no label in the sample, or one that is no number from 0 up",
    _CUT_OFF: "the shard is cut off in this sample",
}

_AT_ONCE = 8  # shards whose indices are looked for together

_OPEN = 64  # shards a process keeps open


class TarShards:
    """Samples of several shards by their numbers, in the order of the shards.

    Args:
        places: the shards.
        label: member with the label as text (``cls``), or ``json:field``; None for no labels.
        folder: for the index, one file a shard; those of unchanged shards are used again.
        window: how many shards are mixed at once by ``order``; 0 for all.
        compare: see ``maskgen.tasks.data.identity.Compare``.
        picture: member that is the picture, such as ``jpg``; None where samples have a single one.
        captions: member with the captions, one a line (``txt``), or ``json:field``; None for no captions. Samples without
            are left out.
        uncaptioned: share of the samples that may have none.

    Raises:
        ValueError: a file that is no tar, no sample at all, or too many without captions.
        maskgen.data.DataUnavailable: a shard cannot be read.
    """

    def __init__(
        self,
        places: Sequence[ShardPlace],
        *,
        label: str | None,
        folder: Path,
        window: int = 0,
        compare: Compare = "auto",
        picture: str | None = None,
        captions: str | None = None,
        uncaptioned: float = 0.1,
    ) -> None:
        self.places, self.label, self.folder, self.window, self.compare = list(places), label, folder, window, compare
        self.picture, self.captions = picture, captions
        asked = _Wanted(label, picture, captions)
        with ThreadPoolExecutor(_AT_ONCE) as pool:  # most of it is waiting for places far away
            by_url = dict(pool.map(lambda place: _index(place, asked, folder), _from_own_place(self.places)))
        parts = [by_url[place.url] for place in self.places]
        if repeated := sum(int(part["repeated"]) for part in parts):
            told = f"{self.places[0].url}: {repeated} members come again under the name of one before them; they are skipped"
            warnings.warn(told, stacklevel=4)
        if captions is not None:
            parts = self._with_captions(parts, uncaptioned)
        self.counts = [len(part["sizes"]) for part in parts]
        self._ends = np.cumsum(self.counts)
        if not self._ends[-1]:
            raise ValueError(f"{self.places[0].url}: no samples in {len(self.places)} shard(s)")
        self._offsets, self._sizes, self._labels = (
            np.concatenate([part[name].numpy() for part in parts]) for name in ("offsets", "sizes", "labels")
        )
        self._keys = [_keys_of(part) for part in parts]
        self._captions = [found for part in parts if (found := Texts.among(part)) is not None]
        self._opened: OrderedDict[int, None] = OrderedDict()

    def __len__(self) -> int:
        return int(self._ends[-1])

    @property
    def labels(self) -> np.ndarray:
        """Class id of each sample, -1 for none."""
        return self._labels

    def identity(self) -> dict[str, Any]:
        """See ``maskgen.tasks.data.identity.Identified``; contents are compared only if they are to be."""
        names = [Path(place.url).name if place.local else place.url for place in self.places]
        labels = None if self.label is None else self._labels.tolist()
        told = {"label": self.label, **listing_identity(names, self._sizes.clip(0).tolist(), labels)}
        told["keys"] = f"{len(self)} samples ({short_hash([keys.content.tobytes().hex() for keys in self._keys])})"
        if self._captions:
            told["captions"] = short_hash([captions.digest() for captions in self._captions])
        told["times"] = short_hash([place.version() for place in self.places])
        if self.compare == "content":
            told["content"] = short_hash([place.scan(_digest) for place in self.places])
        return told

    def name(self, index: int) -> str:
        """Shard and key of a sample."""
        shard, place = self._place(index)
        return f"{self.places[shard].url}: {self._keys[shard][place]}"

    def read(self, indices: Sequence[int]) -> list[Encoded | Broken]:
        """See ``maskgen.tasks.data.images.sources.Encodings``; the ranges of one shard are asked for together."""
        found: dict[int, Encoded | Broken] = {}
        wanted: dict[int, list[int]] = {}
        for index in dict.fromkeys(int(index) for index in indices):
            size = int(self._sizes[index])
            if size < 0:
                name = self.name(index)
                found[index] = Broken(name, f"{name}: {_REASONS[size]}")
            else:
                wanted.setdefault(self._place(index)[0], []).append(index)
        for shard, some in wanted.items():
            spans = [(int(self._offsets[i]), int(self._offsets[i]) + int(self._sizes[i])) for i in some]
            self._touch(shard)
            for index, content in zip(some, self.places[shard].ranges(spans), strict=True):
                label = None if self.label is None else int(self._labels[index])
                found[index] = Encoded(self.name(index), content, label, self._captions_of(index))
        return [found[int(index)] for index in indices]

    def order(self, seed: int) -> Tensor:
        """See ``maskgen.data.OrderedSource``: shards in random order, ``window`` of them mixed at a time."""
        generator = torch.Generator().manual_seed(seed)
        if not self.window:
            return torch.randperm(len(self), generator=generator)
        starts = self._ends - np.asarray(self.counts)
        shards = torch.randperm(len(self.counts), generator=generator).tolist()
        parts = []
        for first in range(0, len(shards), self.window):
            some = [np.arange(starts[s], self._ends[s]) for s in shards[first : first + self.window]]
            mixed = torch.from_numpy(np.concatenate(some))
            own = torch.Generator().manual_seed(item_seed(seed, first))
            parts.append(mixed[torch.randperm(len(mixed), generator=own)])
        return torch.cat(parts)

    def _captions_of(self, index: int) -> Captions:
        shard, place = self._place(index)
        return tuple(self._captions[shard][place].split("\n")) if self._captions else ()

    def _with_captions(self, parts: Sequence[dict[str, Tensor]], share: float) -> list[dict[str, Tensor]]:
        """The parts without samples that have no captions; those that are broken anyway stay, to be counted as such."""
        found, kept = list[Captions | Broken](), list[dict[str, Tensor]]()
        for place, part in zip(self.places, parts, strict=True):
            captions, keys = Texts.among(part), _keys_of(part)
            assert captions is not None, "see _packed"
            rows = [row for row, size in enumerate(part["sizes"].tolist()) if size < 0 or captions[row]]
            bare = sorted(set(range(len(keys))) - set(rows))
            found += [("",)] * len(rows)
            found += [
                Broken(f"{place.url}: {keys[row]}", f"{place.url}: {keys[row]}: no {self.captions}") for row in bare
            ]
            if bare:
                chosen = {name: part[name][rows] for name in ("offsets", "sizes", "labels")}
                left = Texts.of(keys[row] for row in rows)
                chosen |= {"keys": torch.from_numpy(left.content), "key_ends": torch.from_numpy(left.ends)}
                part = chosen | Texts.of(captions[row] for row in rows).tensors()
            kept.append(part)
        captioned(self.places[0].url, found, share, stacklevel=5)
        return kept

    def _place(self, index: int) -> tuple[int, int]:
        shard = int(np.searchsorted(self._ends, index, side="right"))
        return shard, index - int(self._ends[shard]) + self.counts[shard]

    def _touch(self, shard: int) -> None:
        """Keep a few shards open, those that were used last."""
        self._opened[shard] = None
        self._opened.move_to_end(shard)
        while len(self._opened) > _OPEN:
            self.places[self._opened.popitem(last=False)[0]].close()


@dataclass(frozen=True)
class _Wanted:
    """Which members of samples count."""

    label: str | None
    picture: str | None
    captions: str | None

    def texts(self) -> set[str]:
        """Endings of those that are read."""
        return {kind.partition(":")[0].lower() for kind in (self.label, self.captions) if kind is not None}


def _keys_of(part: Mapping[str, Tensor]) -> Texts:
    return Texts(part["keys"].numpy(), part["key_ends"].numpy())


def index_folder(given: Path | None) -> Path:
    """Where indices and fetched shards are kept: ``XDG_CACHE_HOME`` or ``~/.cache``, in ``maskgen/shards``."""
    usual = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "maskgen" / "shards"
    return Path(given) if given is not None else usual


def _from_own_place(places: Sequence[ShardPlace]) -> list[ShardPlace]:
    """From another place on in each process: those that start together share the work instead of waiting for each other."""
    start = int(os.environ.get("RANK", "0")) * len(places) // max(1, int(os.environ.get("WORLD_SIZE", "1")))
    return [*places[start:], *places[:start]]


def _index(place: ShardPlace, asked: _Wanted, folder: Path) -> tuple[str, dict[str, Tensor]]:
    """``offsets``, ``sizes``, ``labels`` long ``[M]``; the keys in one row of bytes with their ends, and so the captions."""
    told = {name: str(value) for name, value in dataclasses.asdict(asked).items() if name != "captions" or value}
    wanted = {"version": f"{_VERSION} {place.version()}", **told}
    digest = hashlib.sha256(" ".join([place.address, *told.values()]).encode()).hexdigest()[:24]
    path = folder / f"{digest}.index.safetensors"
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{path}.lock"):
        if path.is_file():
            try:
                with safe_open(path, framework="pt") as handle:
                    if handle.metadata() == wanted:
                        return place.url, {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118
            except (SafetensorError, OSError):
                pass  # damaged: it is made anew
        made = place.scan(lambda stream: _scan(stream, place.url, asked))
        with atomic_file(path) as temporary:
            try:
                save_file(made, temporary, metadata=wanted)
            except SafetensorError as error:
                raise OSError(f"{path}: cannot be written ({error})") from None
    return place.url, made


@dataclass
class _Sample:
    """What of a sample was found so far."""

    offset: int = 0
    size: int = _NO_PICTURE
    label: int = -1
    captions: Captions = ()
    pictures: list[str] = field(default_factory=list)
    others: set[str] = field(default_factory=set)

    def repeats(self, ending: str) -> bool:
        """Whether a member of this ending was there before; notes it."""
        if ending in self.pictures or ending in self.others:
            return True
        self.others.add(ending)
        return False


def _scan(stream: IO[bytes], url: str, wanted: _Wanted) -> dict[str, Tensor]:
    """What is in a shard.

    Raises:
        ValueError: no tar archive, or samples with several pictures of which none was chosen.
    """
    samples: dict[str, _Sample] = {}
    repeated, label, captions = 0, wanted.label, wanted.captions
    sample, member = _Sample(), None
    try:
        with tarfile.open(fileobj=stream, mode="r|") as tar:
            for member in tar:
                hidden = is_hidden(PurePosixPath(member.name)) or os.path.basename(member.name).startswith("__")
                if not member.isfile() or hidden:
                    continue
                head, _, name = member.name.rpartition("/")
                stem, _, suffix = name.partition(".")
                ending, key = suffix.lower(), f"{head}/{stem}" if head else stem
                sample = samples.setdefault(key, _Sample())
                if sample.repeats(ending):
                    repeated += 1
                elif ending == wanted.picture or (wanted.picture is None and f".{ending}" in PICTURE_SUFFIXES):
                    sample.pictures.append(ending)
                    sample.offset, sample.size = member.offset_data, member.size
                elif ending in wanted.texts():
                    found = tar.extractfile(member)
                    content = found.read() if found else b""
                    if label is not None and ending == label.partition(":")[0]:
                        sample.label = _number(content, label)
                    if captions is not None and ending == ending_of(captions):
                        with contextlib.suppress(ValueError):  # as good as none
                            sample.captions = read_captions(content, captions, key)
    except tarfile.ReadError as error:
        if member is None:
            raise ValueError(
                f"{url}: got a file that is no tar archive ({error}), expected a shard of samples"
            ) from None
        sample.size = _CUT_OFF
    if odd := {key: found.pictures for key, found in samples.items() if len(found.pictures) > 1}:
        key, several = next(iter(odd.items()))
        raise ValueError(
            f"{url}: {len(odd)} of {len(samples)} samples hold several pictures, such as {key} ({', '.join(several)}); say "
            f"which is meant: picture: {several[0]}"
        )
    return _packed(samples, label is not None, captions is not None) | {"repeated": torch.tensor([repeated])}


def _packed(samples: Mapping[str, _Sample], labelled: bool, captioned: bool) -> dict[str, Tensor]:
    """Samples as tensors, see ``_index``."""
    rows = list(samples.values())
    sizes = [_NO_LABEL if one.size >= 0 and labelled and one.label < 0 else one.size for one in rows]
    keys = [key.encode() for key in samples]
    return {
        "offsets": torch.tensor([one.offset for one in rows]).long(),
        "sizes": torch.tensor(sizes).long(),
        "labels": torch.tensor([one.label for one in rows]).long(),
        "keys": torch.frombuffer(bytearray(b"".join(keys) or b" "), dtype=torch.uint8),
        "key_ends": torch.tensor(np.cumsum([len(one) for one in keys]), dtype=torch.long),
        **(Texts.of("\n".join(one.captions) for one in rows).tensors() if captioned else {}),
    }


def _number(content: bytes, label: str) -> int:
    """A class id, -1 for none."""
    try:
        field = label.partition(":")[2]
        found = int(json.loads(content)[field]) if field else int(content.decode().strip())
    except (ValueError, KeyError, TypeError):
        return -1
    return max(found, -1)


def _digest(stream: IO[bytes]) -> str:
    """Hash of an unpacked shard."""
    found = hashlib.sha256()
    while block := stream.read(1 << 20):
        found.update(block)
    return found.hexdigest()
