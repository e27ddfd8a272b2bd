"""Images of the Hugging Face ``datasets`` library: from the Hub or from files here, at once or as a stream.

Shapes: B batch, H W pixels.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import get_worker_info

from maskgen.data import item_seed
from maskgen.tasks.data.broken import Broken
from maskgen.tasks.data.captions import Captions, captioned, captions_of
from maskgen.tasks.data.identity import AUTO_BYTES, Compare, listing_identity, short_hash
from maskgen.tasks.data.images.sources import Encoded, Encodings, PictureData, PictureRules
from maskgen.tasks.data.patience import patiently

_WINDOWS = 2  # windows of a stream that are kept: a batch may lie in two


class HubImages(PictureData):
    """A data set of images by its name on the Hub, or by a loader (``parquet``, ``imagefolder``, ``webdataset``) and files.

    ``captions`` names the column of the captions, texts or lists of texts. Rows without are left out; those of a stream
    count as broken.

    Usually all of it is fetched first and kept by ``datasets``: any image is then at hand, and a run goes on at the very
    image where it stopped at no cost. As a stream nothing is kept, and there are limits: it is read forwards only, in the
    order of its files, mixed within a window; a run that goes on reads up to where it was; every process
    reads all of it to decode its own share, itself (``settings.workers: 0``). For many processes make shards of it, or
    tokens (``maskgen tokenize``).

    Args:
        path: as for ``datasets.load_dataset``; a configuration follows after a colon.
        size: side of the images in pixels.
        split: of the training images.
        test_split: of held-out images; never a stream.
        data_files: files for a loader, as ``images/*.parquet``.
        image: column of the pictures.
        label: column of the classes, which must have names there; null for no classes.
        stream: how many images of a stream are mixed with each other and kept in memory; 0 fetches everything first.
        count: how many images a stream has, if the data set does not say.
        **rules: see ``maskgen.tasks.data.images.sources.PictureRules``.

    Raises:
        ImportError: ``datasets`` is not installed.
        ValueError: a split or column that does not exist, classes without names, or settings out of range.
        OSError: no such data set, or no connection.
    """

    def __init__(
        self,
        path: str,
        size: int = 256,
        split: str = "train",
        test_split: str | None = None,
        *,
        data_files: str | None = None,
        image: str = "image",
        label: str | None = "label",
        stream: int = 0,
        count: int = 0,
        **rules: Any,
    ) -> None:
        if stream < 0 or count < 0:
            raise ValueError(f"HubImages: got stream {stream}, count {count}; expected 0 or more of each")
        settled = PictureRules(**rules)
        if settled.crop == "resized":
            self.min_scale = settled.min_scale
        self.path, self.split, self.label, self.stream = path, split, label or "", stream
        columns, captions = (image, label), settled.captions
        told: dict[str, Any] = {"captions": captions, "uncaptioned": settled.uncaptioned}
        table = _load(path, split, data_files, (*columns, captions), stream > 0)
        self._names = _class_names(table, label, path)
        if stream:
            length = count or _length(table, split)
            if not length:
                raise ValueError(f"{path}: does not say how many images {split} has; give count")

            def start(first: int) -> Iterator[dict[str, Any]]:
                return iter(table.skip(first))

            train: Encodings = StreamedPictures(start, length, stream, columns, f"{path} {split}", captions)
        else:
            train = StoredPictures(table, columns, f"{path} {split}", settled.compare, **told)
        test = None
        if test_split is not None:
            held_out = _load(path, test_split, data_files, (*columns, captions), False)
            name = f"{path} {test_split}"
            test = (StoredPictures(held_out, columns, name, settled.compare, **told), path)
        self._hold(size, settled, (train, path), test)


class StoredPictures:
    """A table of ``datasets`` with pictures that are not decoded.

    Args:
        table: any row by its number.
        columns: of picture and label.
        name: how errors call it.
        compare: see ``maskgen.tasks.data.identity.Compare``.
        captions: column of the captions, if they are wanted.
        uncaptioned: share of the pictures that may have none.
    """

    def __init__(
        self,
        table: Any,
        columns: tuple[str, str | None],
        name: str,
        compare: Compare = "auto",
        *,
        captions: str | None = None,
        uncaptioned: float = 0.1,
    ) -> None:
        if not len(table):
            raise ValueError(f"{name}: no images in it")
        if captions is not None:
            texts = table.select_columns([captions])
            found = [_captions(row[captions], captions, f"{name}: {place}") for place, row in enumerate(texts)]
            kept = captioned(name, found, uncaptioned, stacklevel=3)
            table = table if len(kept) == len(table) else table.select(kept)
        self.table, self.columns, self.name, self.compare, self.captions = table, columns, name, compare, captions

    def __len__(self) -> int:
        return len(self.table)

    def identity(self) -> dict[str, Any]:
        """See ``maskgen.tasks.data.identity.Identified``: of much, the sizes stand for the contents."""
        label, size = self.columns[1], int(self.table.data.nbytes)
        labels = None if label is None else [-1 if one is None else int(one) for one in self.table[label]]
        content = None
        if self.compare == "content" or (self.compare == "auto" and size <= AUTO_BYTES):
            found = self.read(range(len(self)))
            content = [hashlib.sha256(one.content if isinstance(one, Encoded) else b"").hexdigest() for one in found]
        told = listing_identity([self.name, str(len(self))], [size], labels, content)
        if (column := self.captions) is not None:
            told["captions"] = short_hash([row[column] for row in self.table.select_columns([column])])
        return told

    def read(self, indices: Sequence[int]) -> list[Encoded | Broken]:
        """See ``maskgen.tasks.data.images.sources.Encodings``."""
        rows = ((self.table[int(index)], f"{self.name}: {index}") for index in indices)
        return [_encoded(row, self.columns, self.captions, name) for row, name in rows]


class StreamedPictures:
    """A stream, read forwards in windows that are kept in memory.

    Args:
        start: opens the stream at a row.
        count: rows of it.
        window: rows that are mixed with each other.
        columns: of picture and label.
        name: how errors call it.
        captions: column of the captions, if they are wanted; a row without is broken.
    """

    def __init__(
        self,
        start: Callable[[int], Iterator[dict[str, Any]]],
        count: int,
        window: int,
        columns: tuple[str, str | None],
        name: str,
        captions: str | None = None,
    ) -> None:
        self.start, self.count, self.window, self.columns, self.name = start, count, window, columns, name
        self.captions = captions
        self._rows: Iterator[dict[str, Any]] | None = None
        self._next = 0  # the window that comes next
        self._kept: dict[int, list[Encoded | Broken]] = {}

    def __len__(self) -> int:
        return self.count

    def read(self, indices: Sequence[int]) -> list[Encoded | Broken]:
        """See ``maskgen.tasks.data.images.sources.Encodings``; quick where the indices follow ``order``."""
        worker = get_worker_info()
        if worker is not None:  # datasets would deal out the stream among them, and its threads do not survive a fork
            raise ValueError(
                f"settings.workers: got {worker.num_workers}, expected 0: a stream is read by the run itself"
            )
        found = []
        for index in indices:
            number, place = divmod(int(index), self.window)
            found.append(self._window(number)[place])
        return found

    def order(self, seed: int) -> Tensor:
        """See ``maskgen.data.OrderedSource``: window after window, each mixed."""
        parts = []
        for first in range(0, self.count, self.window):
            generator = torch.Generator().manual_seed(item_seed(seed, first))
            parts.append(first + torch.randperm(min(self.window, self.count - first), generator=generator))
        return torch.cat(parts)

    def _window(self, number: int) -> list[Encoded | Broken]:
        if number not in self._kept:
            self._kept[number] = patiently(self.name, lambda: self._fetch(number))
            for old in list(self._kept)[:-_WINDOWS]:
                del self._kept[old]
        return self._kept[number]

    def _fetch(self, number: int) -> list[Encoded | Broken]:
        first = number * self.window
        if self._rows is None or number != self._next:
            self._rows = self.start(first)
        rows, self._rows = self._rows, None  # if it breaks off, it has to be opened anew
        wanted = min(self.window, self.count - first)
        found = [
            _encoded(row, self.columns, self.captions, f"{self.name}: {first + place}")
            for place, row in zip(range(wanted), rows, strict=False)
        ]
        if len(found) < wanted:
            raise ValueError(f"{self.name}: got {first + len(found)} images, expected {self.count}; set count to that")
        self._rows, self._next = rows, number + 1
        return found

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_rows": None, "_kept": {}}


def _load(path: str, split: str, data_files: str | None, columns: Sequence[str | None], stream: bool) -> Any:
    try:
        from datasets import Image, load_dataset
    except ImportError:
        raise ImportError('data sets of the Hub need the library datasets: pip install "maskgen[data]"') from None
    name, _, config = path.partition(":")
    table = load_dataset(name, config or None, split=split, data_files=data_files, streaming=stream)
    features = table.features or {}
    missing = [column for column in columns if column is not None and column not in features]
    if missing:
        raise ValueError(f"{path}: has no column {missing[0]!r}, expected one of {', '.join(features)}")
    wanted = [column for column in columns if column is not None]
    return table.select_columns(wanted).cast_column(wanted[0], Image(decode=False))


def _class_names(table: Any, label: str | None, path: str) -> tuple[str, ...]:
    if label is None:
        return ()
    names = getattr(table.features[label], "names", None)
    if not names:
        raise ValueError(
            f"{path}: its column {label!r} does not name its classes (ClassLabel); name another, or label: null"
        )
    return tuple(names)


def _length(table: Any, split: str) -> int:
    """Rows of a stream by what the data set says about itself; 0 if it says nothing."""
    found = (table.info.splits or {}).get(split)
    return int(found.num_examples or 0) if found is not None else 0


def _captions(value: Any, column: str, name: str) -> Captions | Broken:
    return captions_of(value, f"{name}: {column}") or Broken(name, f"{name}: no caption")


def _encoded(row: dict[str, Any], columns: tuple[str, str | None], captions: str | None, name: str) -> Encoded | Broken:
    picture, label = row[columns[0]], None if columns[1] is None else row[columns[1]]
    if columns[1] is not None and (label is None or label < 0):
        return Broken(name, f"{name}: no label")
    if picture is None:
        return Broken(name, f"{name}: no picture")
    found = () if captions is None else _captions(row[captions], captions, name)
    if isinstance(found, Broken):
        return found
    content = picture.get("bytes")
    if content is None:
        try:
            with open(picture["path"], "rb") as handle:
                content = handle.read()
        except OSError as error:
            return Broken(name, f"{name}: {error.filename}: {error.strerror}")
    return Encoded(name, content, label, found)
