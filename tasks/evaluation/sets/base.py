"""Samples to be measured, wherever they are: folders, archives, ``.npz`` batches, generated sets, data sets.

Shapes: M samples, T frames, H W pixels, C channels, S samples of sound. Pictures are uint8 ``[3, H, W]``, clips uint8
``[3, T, H, W]``, sounds float ``[C, S]``.
"""

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from maskgen.data import Source, draw_numbers
from maskgen.tasks.data.base import AudioData, Modality, SignalData, modality_named
from maskgen.tasks.data.broken import Broken
from maskgen.tasks.data.captions import is_captioned
from maskgen.tasks.data.file_sets import warn_of_parts
from maskgen.tasks.data.images.cifar10 import PixelSource
from maskgen.tasks.data.images.digits import ShiftedSource
from maskgen.tasks.data.images.sources import PictureSource
from maskgen.tasks.evaluation.sets.arrays import open_array
from maskgen.tasks.evaluation.sets.file_captions import FileCaptions
from maskgen.tasks.evaluation.sets.files import (
    manifest_items,
    read_clip,
    read_picture,
    read_sound,
    read_strip,
    sample_names,
)
from maskgen.tasks.evaluation.sets.pictures import PlainPictures
from maskgen.tasks.media.shelf import Shelf

Sample = Tensor | Broken
"""A sample, or what stands in its place if it cannot be read."""


class SampleSet(ABC):
    """Samples in a fixed order.

    Attributes:
        modality: "image", "video" or "audio".
        name: how errors and reports call them.
        labels: class of each; None if nobody knows.
        class_names: one a class, or none.
    """

    modality: Modality
    name: str
    labels: list[int] | None = None
    class_names: tuple[str, ...] = ()

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def read(self, start: int, stop: int) -> list[Sample]:
        """Samples ``start`` to ``stop`` - 1; a ``Broken`` in place of one that cannot be read."""

    @abstractmethod
    def digest(self) -> str:
        """Hash of everything inside; reads all of it, but of an archive its table alone."""

    def sample_rate(self, index: int) -> int:
        """Samples a second of a sound that was read; 0 for other modalities."""
        return 0

    def place(self, index: int) -> int:
        """Number of a sample in the set that these were taken from."""
        return index

    def captions(self, indices: Sequence[int]) -> list[str | Broken] | None:
        """A caption of each of some samples, of several the one that its number draws, or why it has none.

        None stands for a set of which no sample has any.
        """
        return None


class FileSamples(SampleSet):
    """Files of a folder or of a ``.zip``, in the order of their paths; or those of a ``manifest.json`` in its order.

    Where every file is in a folder below the root, the first folders are the classes.

    Args:
        root: folder or archive.
        modality: what to look for.
        frames: of video, at most so many are read, from the beginning.

    Raises:
        FileNotFoundError: there is no such place.
        ValueError: no such files inside, or a generated set that is not finished.
    """

    def __init__(self, root: Path, modality: Modality = "image", frames: int = 16) -> None:
        self.modality, self.name, self.frames = modality, str(root), frames
        self._shelf = Shelf(root, "samples")
        self._rates: dict[int, int] = {}
        self._captions: FileCaptions | None = None  # found when they are asked for
        items, classes, self._strip = manifest_items(self._shelf, modality)
        self._items = items
        if items is not None:
            self._names = [str(item["file"]) for item in items]
            if all(int(item.get("label", -1)) >= 0 for item in items):
                self.labels = [int(item["label"]) for item in items]
                most = max((int(number) for number in classes if number.isdecimal()), default=-1)
                self.class_names = tuple(classes.get(str(number), "") for number in range(most + 1))
            return
        self._names = sample_names(self._shelf, modality)
        folders = [name.partition("/")[0] if "/" in name else "" for name in self._names]
        if all(folders) and not warn_of_parts(self._names, root):
            self.class_names = tuple(sorted(set(folders)))
            place = {folder: number for number, folder in enumerate(self.class_names)}
            self.labels = [place[folder] for folder in folders]

    def __len__(self) -> int:
        return len(self._names)

    def read(self, start: int, stop: int) -> list[Sample]:
        """See ``SampleSet``."""
        return [self._read(index) for index in range(start, min(stop, len(self)))]

    def digest(self) -> str:
        """See ``SampleSet``."""
        return self._shelf.digest(self._names) + _first_frames(self.modality, self.frames)

    def sample_rate(self, index: int) -> int:
        """See ``SampleSet``."""
        return self._rates.get(index, 0)

    def captions(self, indices: Sequence[int]) -> list[str | Broken] | None:
        """See ``SampleSet``: the prompts of a manifest, or the files ``.txt`` beside the samples."""
        self._captions = self._captions or FileCaptions(self._shelf, self._names, self._items)
        return self._captions.read(indices)

    def _read(self, index: int) -> Sample:
        name = self._names[index]
        try:
            if self.modality == "audio":
                sound, self._rates[index] = read_sound(self._shelf, name)
                return sound
            if self.modality == "image":
                return read_picture(self._shelf, name)
            if self._strip:
                return read_strip(self._shelf, name, self._strip)[:, : self.frames]
            return read_clip(self._shelf, name, self.frames)
        except (ValueError, OSError) as error:
            return Broken(name, str(error))


class ArraySamples(SampleSet):
    """An ``.npz`` batch as ADM's: ``arr_0`` uint8 ``[M, H, W, 3]`` or ``[M, T, H, W, 3]``, ``arr_1`` or ``labels`` ``[M]``.

    Beside them may be ``class_names``, texts, one a class.

    The array is mapped, not read, where the file is not compressed.

    Args:
        path: the file.
        frames: of video, at most so many are taken, from the beginning.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: no such arrays inside.
    """

    def __init__(self, path: Path, frames: int = 16) -> None:
        self.name, self.frames, self._path = str(path), frames, path
        array = open_array(path, "arr_0")
        if (
            array is None
            or array.dtype != np.uint8
            or array.ndim not in (4, 5)
            or array.shape[-1] != 3
            or not len(array)
        ):
            told = "no arr_0" if array is None else f"arr_0 {array.dtype} {list(array.shape)}"
            raise ValueError(f"{path}: got {told}, expected arr_0 uint8 [M, H, W, 3] or [M, T, H, W, 3]")
        self._array, self.modality = array, "image" if array.ndim == 4 else "video"
        labels = open_array(path, "arr_1")
        labels = open_array(path, "labels") if labels is None else labels
        if labels is not None and labels.shape == (len(array),) and np.issubdtype(labels.dtype, np.integer):
            self.labels = [int(label) for label in labels]
            names = open_array(path, "class_names")
            self.class_names = () if names is None else tuple(map(str, names.tolist()))

    def __len__(self) -> int:
        return len(self._array)

    def read(self, start: int, stop: int) -> list[Sample]:
        """See ``SampleSet``."""
        part = np.array(self._array[start:stop])  # a copy: a map of a file cannot be written to
        if self.modality == "video":
            part = part[:, : self.frames]
        return list(torch.from_numpy(np.ascontiguousarray(rearrange(part, "b ... c -> b c ..."))))

    def digest(self) -> str:
        """See ``SampleSet``."""
        found = hashlib.sha256(f"{self._array.shape} {self.labels}".encode())
        for first in range(0, len(self), 256):
            found.update(np.ascontiguousarray(self._array[first : first + 256]).data)
        return found.hexdigest()[:16] + _first_frames(self.modality, self.frames)


class DataSamples(SampleSet):
    """One half of a data set, never augmented where that can be helped; each sample is read with its number as seed.

    Args:
        data: images, video or sound.
        split: "train" or "test".
        frames: of video, at most so many are taken, from the beginning.

    Raises:
        ValueError: the data set has no such half.
    """

    def __init__(self, data: SignalData, split: str, frames: int = 16) -> None:
        source = data.train() if split == "train" else data.test()
        if source is None:
            raise ValueError(
                f"data: {type(data).__name__} has no held-out examples; name some, or use its training half"
            )
        self.modality, self.name = modality_named(data.modality), f"{type(data).__name__} ({split})"
        self.frames = frames
        self.class_names, self._data, self._source = data.class_names, data, _plain(source)
        self._pictures = PlainPictures(source) if isinstance(source, PictureSource) else None
        if data.class_names:
            self.labels = _labels(self._source) if self._pictures is None else self._pictures.labels()

    def __len__(self) -> int:
        return len(self._source)

    def read(self, start: int, stop: int) -> list[Sample]:
        """See ``SampleSet``."""
        indices = range(start, min(stop, len(self)))
        if self._pictures is not None:
            return self._pictures.read(indices)
        signal = self._source.batch(indices, indices)[self._data.key]
        if self.modality == "audio":
            return list(signal)
        if self.modality == "video":
            signal = signal[:, :, : self.frames]
        return list((signal.clamp(0, 1) * 255).round().to(torch.uint8))

    def captions(self, indices: Sequence[int]) -> list[str | Broken] | None:
        """See ``SampleSet``."""
        if not is_captioned(self._source):
            return None
        if self._pictures is not None:
            return self._pictures.captions(indices)
        return list(self._source.captions(indices, indices))

    def digest(self) -> str:
        """See ``SampleSet``."""
        found = hashlib.sha256(json.dumps([self.name, len(self), self.labels]).encode())
        if self._pictures is not None:
            return hashlib.sha256(found.digest() + self._pictures.digest().encode()).hexdigest()[:16]
        for first in range(0, len(self), 64):
            for sample in self.read(first, first + 64):
                assert isinstance(sample, Tensor)
                found.update(sample.contiguous().numpy().tobytes())
        return found.hexdigest()[:16]

    def sample_rate(self, index: int) -> int:
        """See ``SampleSet``."""
        return self._data.sample_rate if isinstance(self._data, AudioData) else 0


class Subset(SampleSet):
    """Some samples of a set, in an order of their own.

    Args:
        samples: the set.
        indices: numbers of its samples.
    """

    def __init__(self, samples: SampleSet, indices: Sequence[int]) -> None:
        self.modality, self.name, self.class_names = samples.modality, samples.name, samples.class_names
        self.labels = None if samples.labels is None else [samples.labels[index] for index in indices]
        self._samples, self._indices = samples, indices

    def __len__(self) -> int:
        return len(self._indices)

    def read(self, start: int, stop: int) -> list[Sample]:
        """See ``SampleSet``."""
        return [self._samples.read(index, index + 1)[0] for index in self._indices[start:stop]]

    def digest(self) -> str:
        """See ``SampleSet``."""
        return hashlib.sha256(f"{self._samples.digest()} {list(self._indices)}".encode()).hexdigest()[:16]

    def sample_rate(self, index: int) -> int:
        """See ``SampleSet``."""
        return self._samples.sample_rate(self._indices[index])

    def place(self, index: int) -> int:
        """See ``SampleSet``."""
        return self._samples.place(self._indices[index])

    def captions(self, indices: Sequence[int]) -> list[str | Broken] | None:
        """See ``SampleSet``."""
        return self._samples.captions([self._indices[index] for index in indices])


def drawn(samples: SampleSet, most: int) -> SampleSet:
    """At most so many samples of a set, the same ones every time, see ``maskgen.data.draw_numbers``."""
    return samples if len(samples) <= most else Subset(samples, draw_numbers(len(samples), most))


def open_samples(path: Path, modality: Modality, frames: int = 16) -> SampleSet:
    """Samples by their place: a folder, a ``.zip`` or an ``.npz``.

    Args:
        path: where.
        modality: what they are.
        frames: see ``FileSamples``.

    Raises:
        FileNotFoundError: there is nothing.
        ValueError: another modality, or what the classes above refuse.
    """
    found: SampleSet = (
        ArraySamples(path, frames) if path.suffix.lower() == ".npz" else FileSamples(path, modality, frames)
    )
    if found.modality != modality:
        raise ValueError(f"{path}: holds samples of {found.modality}, but the features are of {modality}")
    return found


def _first_frames(modality: Modality, frames: int) -> str:
    """What a hash of clips says beside their contents: how many frames of each were taken."""
    return f"-{frames}" if modality == "video" else ""


def _plain(source: Source) -> Source:
    """The same examples without augmentation: a random crop is another picture than the one that the papers measure."""
    if isinstance(source, ShiftedSource):
        return source.source
    return PixelSource(source.pixels, source.labels) if isinstance(source, PixelSource) else source


def _labels(source: Source) -> list[int]:
    found: list[int] = []
    for first in range(0, len(source), 256):
        indices: Sequence[int] = range(first, min(first + 256, len(source)))
        found += source.batch(indices, indices)["labels"].tolist()
    return found
