"""Files from plain addresses: resumed where they broke off, checked, and fetched once however many processes ask.

Files of the Hugging Face Hub go through ``huggingface_hub``, which does all of this itself.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import http.client
import json
import os
import shutil
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock
from tqdm.auto import tqdm

__all__ = ["download", "is_offline"]

_BLOCK = 1 << 20

_TRIES = 5  # of one call; each goes on where the last one stopped

_TIMEOUT = 30.0  # seconds without a byte

_PAUSE = 1.0  # seconds before the next try


@dataclass
class _Answer:
    """What a server said about the file it sends.

    Attributes:
        start: where the body begins in the file.
        size: of the whole file, None if the server does not tell.
        validator: changes when the file does; empty if the server gives none.
        md5: of the whole file in base64, empty if the server does not tell.
    """

    start: int
    size: int | None
    validator: str
    md5: str


def download(url: str, target: Path, *, sha256: str = "") -> Path:
    """Fetch a file, unless it is there.

    What has arrived stays in ``target`` + ``.part``, with what identifies the file on the server beside it; the next try,
    or the next call, asks only for the rest. A file that has changed on the server meanwhile is fetched from its start.

    Args:
        url: address; http and https.
        target: where the file goes; its folder is made.
        sha256: first hexadecimal digits of the hash it must have.

    Returns:
        ``target``, whole: of the length the server told, of its MD5 where it told one, and of the hash asked for.

    Raises:
        ConnectionError: offline, no answer, or broken off again and again (what has arrived is kept).
        FileNotFoundError: the server has no such file.
        ValueError: what arrived is not what the server announced.
        OSError: the folder cannot be written to, or the disk is too small.
    """
    if target.is_file():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{target}.lock"):
        if target.is_file():  # another process fetched it while this one waited
            return target
        if is_offline():
            raise ConnectionError(f"{url}: not in the cache, and HF_HUB_OFFLINE is set")
        part = target.with_name(f"{target.name}.part")
        answer = _fetch(url, part)
        _check(url, part, answer, sha256)
        os.replace(part, target)
        _note(part).unlink(missing_ok=True)
    return target


def is_offline() -> bool:
    """Whether the user said that there is no network (``HF_HUB_OFFLINE``, as for the Hub)."""
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")


def _fetch(url: str, part: Path) -> _Answer:
    """Fill the ``.part`` file to the size that the server tells."""
    problem: Exception | None = None
    for attempt in range(_TRIES):
        time.sleep(_PAUSE if attempt else 0)
        try:
            answer = _fetch_rest(url, part)
        except urllib.error.HTTPError as error:
            error.close()
            if error.code == 416:  # nothing is left after what is there: it belongs to another file
                part.unlink(missing_ok=True)
                problem = error
                continue
            if error.code < 500:
                raise FileNotFoundError(f"{url}: the server answers {error.code} {error.reason}") from None
            problem = error
        except (http.client.HTTPException, urllib.error.URLError, TimeoutError, ConnectionError) as error:
            problem = error
        else:
            if answer.size is None or part.stat().st_size >= answer.size:
                return answer
    have = part.stat().st_size if part.exists() else 0
    reason = getattr(problem, "reason", None) or problem or "the connection ends early"
    if not have:
        raise ConnectionError(f"{url}: cannot be reached ({reason})")
    raise ConnectionError(f"{url}: broken off after {have} bytes ({reason}); run again to go on from there")


def _fetch_rest(url: str, part: Path) -> _Answer:
    have = part.stat().st_size if part.exists() else 0
    known = _read_note(part) if have else {}
    request = urllib.request.Request(url, headers={"User-Agent": "maskgen", "Accept-Encoding": "identity"})
    if have and known.get("validator"):
        request.add_header("Range", f"bytes={have}-")
        request.add_header("If-Range", known["validator"])  # a file that has changed comes whole
    with urllib.request.urlopen(request, timeout=_TIMEOUT) as response:
        answer = _read_answer(response)
        if answer.start not in (0, have):
            raise ConnectionError(f"asked for bytes from {have}, got them from {answer.start}")
        if answer.size is not None and shutil.disk_usage(part.parent).free < answer.size - answer.start:
            raise OSError(
                f"{part.parent}: {answer.size - answer.start} bytes are needed for {part.stem}, fewer are free"
            )
        _note(part).write_text(json.dumps({"validator": answer.validator}), encoding="utf-8")
        with (
            part.open("ab" if answer.start else "wb") as handle,
            tqdm(
                total=answer.size, initial=answer.start, desc=part.stem, unit="B", unit_scale=True, unit_divisor=1024
            ) as bar,
        ):
            while block := response.read(_BLOCK):
                handle.write(block)
                bar.update(len(block))
    return answer


def _read_answer(response: Any) -> _Answer:
    headers = response.headers
    start, size = 0, headers.get("Content-Length")
    if response.status == 206:  # "bytes 100-199/200"
        span, _, whole = headers.get("Content-Range", "").removeprefix("bytes ").partition("/")
        start, size = int(span.partition("-")[0] or 0), whole if whole.isdecimal() else None
    etag = headers.get("ETag", "")
    validator = "" if etag.startswith("W/") else etag  # a weak one may not be used to resume
    hashes = ",".join(headers.get_all("x-goog-hash", [])).split(",")
    md5 = next((item.strip().removeprefix("md5=") for item in hashes if item.strip().startswith("md5=")), "")
    return _Answer(start, None if size is None else int(size), validator or headers.get("Last-Modified", ""), md5)


def _check(url: str, part: Path, answer: _Answer, sha256: str) -> None:
    """Refuse, and throw away, what is not the announced file."""
    found, problem = part.stat().st_size, ""
    if answer.size is not None and found != answer.size:
        problem = f"got {found} bytes, expected {answer.size}"
    elif answer.md5 and base64.b64encode(_digest(part, hashlib.md5(usedforsecurity=False))).decode() != answer.md5:
        problem = "its MD5 is not the one that the server tells"
    elif sha256 and not _digest(part, hashlib.sha256()).hex().startswith(sha256.lower()):
        problem = f"its SHA-256 does not begin with {sha256}, as its authors say"
    if problem:
        part.unlink()
        _note(part).unlink(missing_ok=True)
        raise ValueError(f"{url}: damaged on the way ({problem}); thrown away, run again to fetch it anew")


def _digest(path: Path, algorithm: hashlib._Hash) -> bytes:
    with path.open("rb") as handle:
        while block := handle.read(_BLOCK):
            algorithm.update(block)
    return algorithm.digest()


def _note(part: Path) -> Path:
    """Where it stands which version of the file a ``.part`` belongs to."""
    return part.with_name(f"{part.name}.json")


def _read_note(part: Path) -> dict[str, str]:
    with contextlib.suppress(OSError, ValueError):
        found = json.loads(_note(part).read_text(encoding="utf-8"))
        if isinstance(found, dict):
            return {str(name): str(value) for name, value in found.items()}
    return {}
