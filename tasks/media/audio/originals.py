"""A sound file that is edited: how its result is written so that what was not edited stays as it is, and what gets lost.

Kept: container, coding and byte order where samples come back exactly from them (whole numbers, floats, mu-law and A-law,
FLAC), sample rate, channels, and the tags that libsndfile writes. Said when lost: other codings (to code once more would
change every sample: the result is float wav), containers that cannot be written, further tags, cover pictures, markers.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from maskgen.tasks.media.audio import ffmpeg
from maskgen.tasks.media.audio.files import SoundFile
from maskgen.tasks.media.audio.libsndfile import CODINGS, FORMATS, SoundKind, library

_SUFFIXES = {  # of containers that an edit keeps, the usual one first
    **{"WAV": (".wav",), "WAVEX": (".wav",), "RF64": (".rf64", ".wav"), "FLAC": (".flac",), "W64": (".w64",)},
    **{"AIFF": (".aiff", ".aif", ".aifc"), "AU": (".au", ".snd"), "CAF": (".caf",)},
}

_FITTING = {  # codings that hold what one does, then those that round it
    "PCM_U8": ("PCM_S8", "PCM_16"),
    "PCM_S8": ("PCM_U8", "PCM_16"),
    "ULAW": ("PCM_16",),
    "ALAW": ("PCM_16",),
    "PCM_32": ("PCM_24",),
    "DOUBLE": ("FLOAT", "PCM_24"),
    "FLOAT": ("PCM_24",),
}

_ROUNDED = {("PCM_32", "PCM_24"), ("DOUBLE", "FLOAT"), ("DOUBLE", "PCM_24"), ("FLOAT", "PCM_24")}

_ALL = ("title", "copyright", "artist", "comment", "date", "album", "license", "tracknumber", "genre")

_TAGS = {
    **dict.fromkeys(("FLAC", "CAF", "OGG"), _ALL),
    **dict.fromkeys(("WAV", "WAVEX", "RF64"), tuple(tag for tag in _ALL if tag != "license")),
    **{"AIFF": ("title", "copyright", "artist", "comment"), "AU": (), "W64": ()},
    "MP3": ("title", "artist", "comment", "date", "album", "tracknumber", "genre"),
}

_OTHER_NAMES = {"track": "tracknumber", "author": "artist"}  # FFmpeg's

_TECHNICAL = {
    *("software", "encoder", "encoded_by", "major_brand", "minor_version", "compatible_brands", "language"),
    *("handler_name", "vendor_id", "duration", "creation_time"),
}


@dataclass(frozen=True)
class SoundOriginal:
    """What an edit keeps of a sound file beside its samples.

    Attributes:
        name: as errors call it.
        kind: how its samples are stored.
        tags: title, artist and so on, by libsndfile's names.
        lost: what no result can keep.
    """

    name: str
    kind: SoundKind
    tags: dict[str, str]
    lost: tuple[str, ...]

    @property
    def suffix(self) -> str:
        """Of a result that keeps most; ``.wav`` where the file's own container is lossy or cannot be written."""
        own, fitting = Path(self.name).suffix.lower(), _SUFFIXES.get(self.kind.container, ())
        if not self.kind.exact or not fitting:
            return ".wav"
        return own if own in fitting else fitting[0]

    def written(self, path: Path, bits: int | None = None) -> tuple[SoundKind, dict[str, str]]:
        """How a result is stored in a file of this name; warns of all that gets lost.

        Args:
            path: its suffix is one of ``FORMATS``, or else the writer refuses it.
            bits: see ``maskgen.tasks.media.audio.files.SoundWriter``; None for those of the original.
        """
        kind, told = self._kind(path.suffix.lower())
        container, coding = FORMATS.get(path.suffix.lower(), ("", ""))
        if bits in CODINGS and container and not coding:
            kind, told = SoundKind(container, CODINGS[bits]), []
        known = _TAGS.get(kind.container, ())
        kept = {tag: value for tag, value in self.tags.items() if tag in known}
        lost = [*self.lost, *(f"the tag {tag}" for tag in self.tags if tag not in known)]
        if lost:
            told.append(f"not kept: {', '.join(lost)}")
        if told:
            warnings.warn(f"{self.name}: {'; '.join(told)}", stacklevel=4)
        return kind, kept

    def _kind(self, suffix: str) -> tuple[SoundKind, list[str]]:
        """How to store a result, and what changes by it."""
        own = self.kind
        container, coding = FORMATS.get(suffix, ("", ""))
        if coding:
            told = [f"written as {coding}, which changes the samples that were kept as well"]
            return SoundKind(container, coding), told
        if not container:
            return own, []  # which the writer refuses
        if own.exact and suffix in _SUFFIXES.get(own.container, ()):
            return own, []
        told = []
        if not own.exact:
            told.append(
                f"its coding ({own.coding}) cannot be written again without a loss: the result is {suffix} "
                "with the samples as they were decoded"
            )
        elif own.container not in _SUFFIXES:
            told.append(f"a {own.container} container is not written, the result is {suffix}")
        first, package = own.coding if own.exact else "FLOAT", library()
        able = (one for one in (first, *_FITTING.get(first, ())) if package and package.check_format(container, one))
        chosen = next(able, first)
        if own.exact and (own.coding, chosen) in _ROUNDED:
            told.append(f"its samples ({own.coding}) are rounded to {chosen}, the most that {container} has")
        return SoundKind(container, chosen), told


def describe(file: SoundFile) -> SoundOriginal:
    """What an edit of a file keeps, and what not."""
    decoder, package = file.decoder, ffmpeg.library()
    own = _named(decoder.tags.items())
    others, cover = ({}, False) if package is None else ffmpeg.other_tags(package, file.source, file.name)
    others = _named(others.items())
    further = [f"the tag {tag}" for tag in sorted(others.keys() - own.keys()) if tag not in _ALL]
    own |= {tag: value for tag, value in others.items() if tag in _ALL and tag not in own}
    pictures = ["its picture"] if cover else []
    return SoundOriginal(file.name, decoder.kind, own, (*pictures, *decoder.lost, *further))


def _named(tags: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Tags by libsndfile's names, without those about how the file was made."""
    found = {_OTHER_NAMES.get(name, name): value for name, value in tags}
    return {name: value for name, value in found.items() if name not in _TECHNICAL}
