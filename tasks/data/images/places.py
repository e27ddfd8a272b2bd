"""Where shards are: on this machine, behind a URL that fsspec knows (http, s3, gs, hf...), or at the end of a pipe.

1. Byte ranges are read of files here and of places that serve ranges.
2. Others (``pipe:``, servers without ranges, ``.tar.gz``) are fetched whole, once for all processes of a machine, into a
   folder that keeps the last ones.
3. What fails is tried again, see ``maskgen.tasks.data.patience``.
"""

import contextlib
import gzip
import hashlib
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, TypeVar, cast

from filelock import FileLock

from maskgen.checkpoint import atomic_file
from maskgen.tasks.data.patience import patiently

T = TypeVar("T")

_BRACES = re.compile(r"\{(\d+)\.\.(\d+)\}|\{([^{}]*,[^{}]*)\}")

_BLOCK = 1 << 20


def expand(shards: str) -> list[str]:
    """Addresses of shards.

    Args:
        shards: a folder (all tar files directly inside), or addresses with braces as ``train-{0000..0146}.tar`` or
            ``{a,b}.tar``, several of them joined by ``::`` (WebDataset's notation).

    Raises:
        FileNotFoundError: a folder or file that is not there.
        ValueError: no shard, or a range that goes down.
    """
    found: list[str] = []
    for part in filter(None, shards.split("::")):
        local = not part.startswith("pipe:") and "://" not in part
        if local and Path(part).is_dir():
            found += sorted(
                str(path) for path in Path(part).iterdir() if path.name.endswith((".tar", ".tar.gz", ".tgz"))
            )
            continue
        each = list(_braces(part))
        missing = [path for path in each if local and not Path(path).is_file()]
        if missing:
            raise FileNotFoundError(
                f"shards: {missing[0]} does not exist ({len(missing)} of {len(each)} are missing); expected a folder of "
                "tar files, or their names as train-{0000..0146}.tar"
            )
        found += each
    if not found:
        raise ValueError(f"shards: got {shards!r}, where there are no tar files")
    if len(set(found)) < len(found):
        raise ValueError(f"shards: got {shards!r}, which names a shard twice")
    return found


class ShardPlace:
    """One shard.

    Args:
        url: a path, an address for fsspec, or ``pipe:`` and a shell command that writes the tar.
        cache: folder for shards that have to be fetched whole.
        most: how many of them are kept.
    """

    def __init__(self, url: str, cache: Path, most: int) -> None:
        self.url, self.cache, self.most = url, cache, most
        self.local = not url.startswith("pipe:") and "://" not in url
        self.packed = url.endswith((".gz", ".tgz"))
        self.whole = self.packed or url.startswith("pipe:")
        self.address = str(Path(url).resolve()) if self.local else url
        self._seen = ""  # the version that this data set is of
        self._handle: tuple[int, int, bool] | None = None  # file, process, whether it is a fetched one

    def version(self) -> str:
        """Changes when the shard does, as far as can be found out without reading it: of a pipe, nothing can."""
        self._seen = self._seen or self._version()
        return self._seen

    def _version(self) -> str:
        if self.url.startswith("pipe:"):
            return self.url

        def ask() -> str:
            if self.local:
                found = os.stat(self.url)
                return f"{found.st_size} {found.st_mtime_ns}"
            system, path = _fsspec(self.url)
            info = system.info(path)
            stamp = info.get("ETag") or info.get("etag") or info.get("LastModified") or info.get("mtime") or ""
            return f"{info.get('size')} {stamp}"

        return patiently(self.url, ask)

    def scan(self, read: Callable[[IO[bytes]], T]) -> T:
        """What a function makes of the unpacked tar, read from its beginning to its end; it may be called again."""

        def once() -> T:
            with self._stream() as stream:
                return read(stream)

        return patiently(self.url, once)

    def ranges(self, spans: Sequence[tuple[int, int]]) -> list[bytes]:
        """Parts of the unpacked tar, each from its first byte to before its last.

        Raises:
            DataUnavailable: the shard cannot be reached, or has become shorter.
        """
        return patiently(self.url, lambda: self._ranges(spans))

    def _ranges(self, spans: Sequence[tuple[int, int]]) -> list[bytes]:
        if not self.local and not self.whole:
            system, path = _fsspec(self.url)
            parts = system.cat_ranges(
                [path] * len(spans), [a for a, _ in spans], [b for _, b in spans], on_error="raise"
            )
            if all(len(part) == stop - start for part, (start, stop) in zip(parts, spans, strict=True)):
                return [bytes(part) for part in parts]
            self.whole = True  # it has sent something else than the range
        try:
            handle = self._open()
            parts = [os.pread(handle, stop - start, start) for start, stop in spans]
        except OSError:
            self.close()  # a network drive that comes back wants the file to be opened anew
            raise
        if any(len(part) != stop - start for part, (start, stop) in zip(parts, spans, strict=True)):
            self.close()
            raise OSError(f"{self.url}: shorter than it was")
        return parts

    def close(self) -> None:
        """Close the file; the next read opens it again."""
        if self._handle is not None and self._handle[1] == os.getpid():
            with contextlib.suppress(OSError):
                os.close(self._handle[0])
        self._handle = None

    def _open(self) -> int:
        if self._handle is None or self._handle[1] != os.getpid():
            path = self._fetched() if self.whole else Path(self.url)
            self._handle = (os.open(path, os.O_RDONLY), os.getpid(), self.whole)
        return self._handle[0]

    def _fetched(self) -> Path:
        """The whole shard on this machine, in the version that was indexed.

        Raises:
            ValueError: it has changed since.
        """
        key = f"{self.address} {self.version()}"
        path = self.cache / f"{hashlib.sha256(key.encode()).hexdigest()[:24]}.tar"
        self.cache.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{path}.lock"):
            if path.is_file():
                os.utime(path)
                return path
            if self._version() != self.version():
                raise ValueError(f"{self.url}: has changed since this run looked at it; start the command again")
            with atomic_file(path) as temporary, temporary.open("wb") as target, self._stream() as stream:
                shutil.copyfileobj(stream, target, _BLOCK)
        kept = sorted(self.cache.glob("*.tar"), key=_time_of)
        for old in kept[: -self.most]:
            if old != path:
                old.unlink(missing_ok=True)  # who reads it goes on reading: the file is open
        return path

    @contextlib.contextmanager
    def _stream(self) -> Iterator[IO[bytes]]:
        with contextlib.ExitStack() as stack:
            if self.url.startswith("pipe:"):
                stream = stack.enter_context(_pipe(self.url.removeprefix("pipe:")))
            elif self.local:
                stream = stack.enter_context(open(self.url, "rb"))
            else:
                system, path = _fsspec(self.url)
                stream = stack.enter_context(system.open(path, "rb", cache_type="readahead", block_size=8 * _BLOCK))
            yield cast("IO[bytes]", stack.enter_context(gzip.open(stream))) if self.packed else stream


def _braces(text: str) -> Iterator[str]:
    found = _BRACES.search(text)
    if found is None:
        yield text
        return
    first, last, several = found.groups()
    if several is None and int(first) > int(last):
        raise ValueError(f"shards: got {found[0]}, expected a range that goes up")
    words = several.split(",") if several else [f"{n:0{len(first)}d}" for n in range(int(first), int(last) + 1)]
    for word in words:
        yield from _braces(text[: found.start()] + word + text[found.end() :])


@contextlib.contextmanager
def _pipe(command: str) -> Iterator[IO[bytes]]:
    """What a shell command writes; that it failed is found out at its end."""
    with subprocess.Popen(command, shell=True, stdout=subprocess.PIPE, bufsize=_BLOCK) as process:
        assert process.stdout is not None
        try:
            yield process.stdout
        except ValueError:  # what came was no tar, perhaps because the command failed
            if process.wait() == 0:
                raise
        else:
            while process.stdout.read(_BLOCK):  # a command that is cut off would fail
                pass
        if process.wait():
            raise OSError(f"the command ended with status {process.returncode}")


def _fsspec(url: str) -> tuple[Any, str]:
    """A file system and the path inside; asked for anew each time, because forked processes must not share one."""
    import fsspec

    try:
        system, path = fsspec.core.url_to_fs(url)
    except ImportError as error:
        raise ImportError(f'{url}: {error}; pip install "maskgen[data]" brings what http and s3 need') from None
    return system, path


def _time_of(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:  # another process was faster
        return 0.0
