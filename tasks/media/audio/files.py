"""Sound in and out: files to tensors and back, channels, sample rates, and one clear line for whatever is no sound.

Files are read and written by soundfile (libsndfile: wav, flac, ogg, mp3, opus, aiff and more), others read by PyAV (FFmpeg:
m4a, AAC, the sound of videos), see ``maskgen.tasks.media.audio.backends``; both bring their libraries along.

Shapes: C channels, S samples. Samples are float32, full scale is [-1, 1].
"""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Iterator, Mapping
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import torch
from torch import Tensor

from maskgen.checkpoint import atomic_file
from maskgen.tasks.media.audio.backends import Decoder, Encoder, open_decoder, open_encoder, settle
from maskgen.tasks.media.audio.libsndfile import CODINGS, FORMATS, SoundKind
from maskgen.tasks.media.checks import check_file

SOUND_SUFFIXES = frozenset(
    {".wav", ".wave", ".bwf", ".w64", ".rf64", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".mp2"}
    | {".aif", ".aiff", ".aifc", ".au", ".snd", ".caf", ".voc", ".m4a", ".m4b", ".aac", ".mka", ".wma", ".wv"}
)
"""How the names of sound files end, in lower case; what ``maskgen.tasks.data.audio.folders`` looks for."""

_HIGHEST_RATE, _MOST_CHANNELS = 192_000, 32  # of recordings; more rows than that are samples

_BLOCK = 65_536  # samples a write: libsndfile's Vorbis encoder overflows its stack on one huge block


def load_sound(path: str | Path, *, start: float = 0.0, seconds: float | None = None) -> tuple[Tensor, int]:
    """A sound file, or a part of it; the rest of the file is not held in memory.

    Args:
        path: the file; its content and not its name decides how it is read.
        start: where to begin, in seconds, rounded to a sample.
        seconds: how much to read; None, or more than there is: up to the end.

    Returns:
        float32 ``[C, S]`` with every channel of the file, and its sample rate. Integer samples become x / 2^(bits - 1);
        values of a float file beyond [-1, 1] are kept.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: no sound, empty, damaged or cut off; NaN or infinity inside; a start beyond the end.
        ImportError: neither soundfile nor PyAV.
    """
    if not (math.isfinite(start) and start >= 0) or (
        seconds is not None and not (math.isfinite(seconds) and seconds > 0)
    ):
        raise ValueError(f"load_sound: got start {start}, seconds {seconds}; expected start >= 0 and seconds > 0")
    with SoundFile(path) as file:
        first = round(start * file.sample_rate)
        if first >= file.frames:
            raise ValueError(
                f"{path}: got start {start} s, expected less than its {file.frames / file.sample_rate:g} s"
            )
        wanted = file.frames if seconds is None else max(1, round(seconds * file.sample_rate))
        return file.read(first, min(wanted, file.frames - first)), file.sample_rate


def save_sound(waveform: Tensor, path: str | Path, sample_rate: int, *, bits: int = 16) -> int:
    """Write a sound file, whole or not at all; the suffix chooses the format. See ``SoundWriter``.

    Args:
        waveform: float ``[C, S]``, one or two channels.
        path: see ``SoundWriter``.
        sample_rate: samples a second.
        bits: see ``SoundWriter``.

    Returns:
        How many samples lay beyond [-1, 1] and had to be clipped, which is warned of as well.

    Raises:
        TypeError: not floating point.
        ValueError: what ``check_waveform`` refuses, or a format or rate that cannot be written.
        OSError: the place cannot be written to.
    """
    check_waveform(waveform, sample_rate)
    with SoundWriter(path, sample_rate, waveform.shape[0], bits=bits) as writer:
        writer.write(waveform)
    return writer.clipped


def check_waveform(waveform: Tensor, sample_rate: int) -> None:
    """Refuse what is no sound that this package works on. Samples beyond [-1, 1] are fine: they are kept as they are.

    Args:
        waveform: tensor to look at.
        sample_rate: samples a second.

    Raises:
        TypeError: not a floating point tensor, or a sample rate that is no integer.
        ValueError: another shape than ``[C, S]``, no samples, more than two channels, NaN or infinity, or a rate outside
            1 to 192000.
    """
    if not isinstance(waveform, Tensor) or not waveform.is_floating_point():
        got = waveform.dtype if isinstance(waveform, Tensor) else type(waveform).__name__
        raise TypeError(f"sound: got {got}, expected a floating point tensor in [-1, 1]; divide int16 by 32768")
    _check_rate(sample_rate)
    if waveform.ndim != 2:
        raise ValueError(f"sound: got shape {tuple(waveform.shape)}, expected [C, S]: channels, then samples")
    channels, samples = waveform.shape
    if samples == 0 or channels == 0:
        raise ValueError(f"sound: got shape {tuple(waveform.shape)}, expected at least one sample in each channel")
    if channels > _MOST_CHANNELS >= samples:
        raise ValueError(
            f"sound: got shape {tuple(waveform.shape)}, which looks like samples x channels; expected [C, S]: waveform.T"
        )
    if channels > 2:
        raise ValueError(
            f"sound: got {channels} channels, expected 1 or 2; downmix to their mean with to_channels(waveform, 1)"
        )
    wrong = samples * channels - int(torch.isfinite(waveform).sum())
    if wrong:
        raise ValueError(f"sound: got {wrong} samples that are NaN or infinite, expected finite numbers in [-1, 1]")


def to_channels(waveform: Tensor, channels: int) -> Tensor:
    """The sound with one channel (the mean of all) or two (mono is doubled). Unchanged if it has as many already.

    Args:
        waveform: ``[C, S]``.
        channels: 1 or 2.

    Raises:
        ValueError: another number, or more than two channels to be made two.
    """
    if channels not in (1, 2) or waveform.ndim != 2:
        raise ValueError(f"to_channels: got {channels} for shape {tuple(waveform.shape)}, expected 1 or 2 for [C, S]")
    if waveform.shape[0] == channels:
        return waveform
    if channels == 1:
        return waveform.mean(0, keepdim=True)
    if waveform.shape[0] == 1:
        return waveform.repeat(2, 1)
    raise ValueError(f"sound: got {waveform.shape[0]} channels, expected 1 or 2 to make stereo; downmix to 1 first")


def resample(waveform: Tensor, old: int, new: int) -> Tensor:
    """The same sound at another sample rate (windowed sinc interpolation, ``torchaudio.functional.resample``).

    Args:
        waveform: float ``[..., S]``.
        old: its sample rate.
        new: the rate that is wanted.

    Returns:
        ``[..., round(S new / old)]``, at least one sample; the very input when the rates are equal.

    Raises:
        ValueError: a rate outside 1 to 192000, or two whose filters would not fit into memory.
        ImportError: without torchaudio.
    """
    _check_rate(old)
    _check_rate(new)
    if old == new:
        return waveform
    common = math.gcd(old, new)
    if (old // common) * (new // common) > 1 << 28:
        raise ValueError(
            f"resample: got {old} to {new} Hz, which needs {new // common} filters of {old // common} numbers; "
            "go through a rate that shares a divisor with both"
        )
    try:
        from torchaudio.functional import resample as interpolate
    except ImportError:
        raise ImportError('resampling needs torchaudio: pip install "maskgen[audio]"') from None
    length = max(1, round(Fraction(waveform.shape[-1] * new, old)))
    changed: Tensor = interpolate(waveform, old, new)[..., :length]
    return changed.contiguous()


class SoundFile:
    """A sound file open for reading, piece by piece. A context manager.

    Args:
        source: a path, or an open binary file.
        name: how errors call it; the path if left out.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a folder; no sound; empty; shorter than its header says. A cut in the middle of a compressed file may
            only show when the file is asked for something, or that part is read.
        ImportError: neither soundfile nor PyAV.
    """

    def __init__(self, source: str | Path | BinaryIO, name: str | None = None) -> None:
        self.name = str(source) if name is None else name
        if isinstance(source, str | Path):
            check_file(Path(source), "a sound file")
        self.source = source
        self._decoder: Decoder | None = open_decoder(source, self.name)
        self._settled = False

    @property
    def sample_rate(self) -> int:
        """Samples a second."""
        return self.decoder.sample_rate

    @property
    def channels(self) -> int:
        """C of the file."""
        return (self._decoder or self.decoder).channels

    @property
    def frames(self) -> int:
        """S of the file: what there is, whatever the header says; a file that does not say is decoded once to find out.

        Raises:
            ValueError: cut off or damaged.
        """
        return self.decoder.frames

    @property
    def dtype(self) -> torch.dtype:
        """Type that holds its samples exactly: float64 where they have more than 24 bits, else float32."""
        return torch.float64 if self.decoder.kind.coding in ("PCM_32", "DOUBLE") else torch.float32

    @property
    def decoder(self) -> Decoder:
        """What reads the file: the one that knows how long it is."""
        if not self._settled:
            opened = self._decoder or open_decoder(self.source, self.name)
            self._decoder, self._settled = settle(opened, self.source, self.name), True
        assert self._decoder is not None, "it is settled"
        return self._decoder

    def read(self, start: int, count: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """Samples ``start`` to ``start + count`` of every channel.

        Args:
            start: first sample.
            count: how many.
            dtype: float32, or float64 for files that hold more than its 24 bits.

        Returns:
            ``[C, count]``.

        Raises:
            ValueError: a range outside the file, a damaged or cut off file, NaN or infinity.
        """
        if start < 0 or count < 1 or start + count > self.frames:
            raise ValueError(
                f"{self.name}: got samples {start} to {start + count}, expected a part of 0 to {self.frames}"
            )
        try:
            samples = self.decoder.read(start, count, dtype)
        except RuntimeError as error:
            raise ValueError(f"{self.name}: damaged or cut off; expected a complete file ({error})") from None
        if samples.shape[1] < count:
            raise ValueError(
                f"{self.name}: damaged or cut off: got {samples.shape[1]} samples from {start} on, expected {count}"
            )
        if not torch.isfinite(samples).all():
            raise ValueError(f"{self.name}: got samples that are NaN or infinite, expected finite numbers in [-1, 1]")
        return samples

    def close(self) -> None:
        """Let go of the file; a later ``read`` opens it again."""
        if self._decoder is not None:
            self._decoder.close()
        self._decoder, self._settled = None, False

    def __enter__(self) -> SoundFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class SoundWriter:
    """A sound file written block by block; it takes its name when the ``with`` block ends well, and is gone otherwise.

    16 and 24 bits hold round(x 2^(bits - 1)), so that what was read from such a file is written back bit for bit
    (libsndfile's own scale on the way out is 2^(bits - 1) - 1); values beyond the last step are clipped. Compressed formats
    are clipped to [-1, 1] first.

    Args:
        path: ends in .wav, .flac, .aiff, .ogg, .mp3, .opus, .caf, .au, .w64 or .rf64.
        sample_rate: samples a second; opus takes 8, 12, 16, 24 and 48 kHz, mp3 8 to 48 kHz.
        channels: 1 or 2.
        bits: where samples are stored as they are: 16, 24, or 32 for float samples, which are never clipped (not flac).
        kind: how samples are stored instead of what suffix and ``bits`` say, see
            ``maskgen.tasks.media.audio.originals.SoundOriginal``.
        tags: title, artist and so on, those that the container has.

    Attributes:
        clipped: samples beyond [-1, 1] so far, where the format cannot hold them.
        frames: samples of each channel so far.

    Raises:
        ValueError: a suffix, rate, number of channels or of bits that cannot be written, or no sample at all at the end.
        OSError: the place cannot be written to.
        ImportError: neither soundfile nor PyAV.
    """

    def __init__(
        self,
        path: str | Path,
        sample_rate: int,
        channels: int,
        *,
        bits: int = 16,
        kind: SoundKind | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> None:
        self.path, self.sample_rate, self.channels = Path(path), sample_rate, channels
        self.clipped = self.frames = 0
        suffix = self.path.suffix.lower()
        if suffix not in FORMATS:
            raise ValueError(f"{path}: expected a name that ends in {', '.join(sorted(FORMATS))}")
        _check_rate(sample_rate)
        if channels not in (1, 2) or bits not in CODINGS or (suffix == ".flac" and bits == 32):
            raise ValueError(
                f"{path}: got {channels} channels and {bits} bits, expected 1 or 2 channels and 16, 24 or 32 bits "
                "(flac: 16 or 24)"
            )
        container, coding = FORMATS[suffix]
        self._kind, self._tags = kind or SoundKind(container, coding or CODINGS[bits]), dict(tags or {})
        self._stack = contextlib.ExitStack()
        self._encoder: Encoder | None = None

    def __enter__(self) -> SoundWriter:
        with _named_errors(self.path), contextlib.ExitStack() as stack:
            temporary = stack.enter_context(atomic_file(self.path))
            self._encoder = stack.enter_context(
                open_encoder(temporary, self.path, self.sample_rate, self.channels, self._kind, self._tags)
            )
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._encoder = None
        if kind is not None:
            self._stack.__exit__(kind, error, trace)
        elif self.frames:
            with _named_errors(self.path):
                self._stack.close()
            if self.clipped:
                warnings.warn(
                    f"{self.path}: {self.clipped} samples beyond [-1, 1] were clipped to fit into {self._kind.coding}; only "
                    "float files (32 bits) keep them",
                    stacklevel=3,
                )
        else:
            nothing = ValueError(f"{self.path}: got no samples, expected at least one; nothing was written")
            self._stack.__exit__(ValueError, nothing, None)
            raise nothing

    def write(self, block: Tensor) -> None:
        """Add samples.

        Args:
            block: float ``[C, n]``.

        Raises:
            TypeError: not floating point.
            ValueError: another number of channels, no samples, NaN or infinity; or outside of ``with``.
        """
        if self._encoder is None:
            raise ValueError(f"{self.path}: not open; write inside `with SoundWriter(...) as writer:`")
        check_waveform(block, self.sample_rate)
        if block.shape[0] != self.channels:
            raise ValueError(f"{self.path}: got {block.shape[0]} channels, expected {self.channels}")
        exact = block.detach().cpu() if block.dtype == torch.float64 else block.detach().float().cpu()
        for piece in exact.split(_BLOCK, dim=1):
            if self._kind.coding not in ("FLOAT", "DOUBLE"):
                self.clipped += int((piece.abs() > 1).sum())
            with _named_errors(self.path):
                self._encoder.write(piece)
        self.frames += block.shape[1]


def _check_rate(sample_rate: int) -> None:
    if isinstance(sample_rate, bool) or not isinstance(sample_rate, int):
        raise TypeError(f"sample rate: got {sample_rate!r} ({type(sample_rate).__name__}), expected an integer in Hz")
    if not 1 <= sample_rate <= _HIGHEST_RATE:
        raise ValueError(f"sample rate: got {sample_rate}, expected 1 to {_HIGHEST_RATE} samples a second")


@contextlib.contextmanager
def _named_errors(path: Path) -> Iterator[None]:
    """Errors that name the place asked for and not the temporary one."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        told = getattr(error, "strerror", None) or getattr(error, "error_string", None) or error
        raise OSError(f"{path}: cannot be written ({told})") from None
