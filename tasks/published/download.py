"""Files from plain addresses: resumed where they broke off, checked, and fetched once however many processes ask.

``huggingface_hub`` moves the bytes and goes on after broken connections; what is ours is that a part is built upon in the
next call, too, and only if the file is still the same. Files of the Hugging Face Hub do not come through here.
"""

import base64
import hashlib
import json
import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

_TRIES, _PAUSE = 5, 1.0  # how often a busy server is asked, and seconds between

_TIMEOUT = 30.0  # seconds without an answer


@dataclass(frozen=True)
class _Told:
    """What a server says about a file; empty where it says nothing.

    Attributes:
        size: in bytes.
        validator: changes when the file does.
        md5: in base64.
    """

    size: int | None = None
    validator: str = ""
    md5: str = ""


def download(url: str, target: Path, *, sha256: str = "") -> Path:
    """Fetch a file, unless it is there; one of another hash than asked for is fetched anew.

    What has arrived stays in ``target`` + ``.part``, with what identifies the file on the server beside it; the next call
    asks only for the rest. A file that has changed on the server meanwhile is fetched from its start.

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
    if _is_whole(target, sha256):
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{target}.lock"):
        if _is_whole(target, sha256):  # another process fetched it while this one waited
            return target
        if is_offline():
            raise ConnectionError(f"{url}: not in the cache, and HF_HUB_OFFLINE is set")
        part, told = target.with_name(f"{target.name}.part"), _ask(url)
        _fetch(url, part, told)
        _check(url, part, told, sha256)
        os.replace(part, target)
        _note(part).unlink(missing_ok=True)
    return target


def _is_whole(target: Path, sha256: str) -> bool:
    """Whether a file is there, and is the one of the hash that was asked for."""
    return target.is_file() and (not sha256 or _digest(target, "sha256").hex().startswith(sha256.lower()))


def is_offline() -> bool:
    """Whether the user said that there is no network (``HF_HUB_OFFLINE``, as for the Hub)."""
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")


def _ask(url: str) -> _Told:
    from huggingface_hub import get_session

    plain = {"Accept-Encoding": "identity"}
    try:
        answer = get_session().head(url, headers=plain, follow_redirects=True, timeout=_TIMEOUT)
    except (
        Exception
    ):  # errors of the hub's HTTP library, which differs between its versions; the download will say more
        return _Told()
    if answer.status_code != 200:
        return _Told()
    size, etag = answer.headers.get("Content-Length"), answer.headers.get("ETag", "")
    validator = "" if etag.startswith("W/") else etag  # a weak one may not be used to resume
    hashes = [item.strip() for item in answer.headers.get("x-goog-hash", "").split(",")]
    md5 = next((item.removeprefix("md5=") for item in hashes if item.startswith("md5=")), "")
    return _Told(None if size is None else int(size), validator or answer.headers.get("Last-Modified", ""), md5)


def _fetch(url: str, part: Path, told: _Told) -> None:
    """Fill the ``.part`` file."""
    from huggingface_hub.errors import HfHubHTTPError
    from huggingface_hub.file_download import http_get

    note = json.dumps({"validator": told.validator})
    if not (told.validator and _note(part).is_file() and _note(part).read_text(encoding="utf-8") == note):
        part.unlink(missing_ok=True)
    if told.size is not None and _have(part) > told.size:
        part.unlink()
    missing = 0 if told.size is None else told.size - _have(part)
    if shutil.disk_usage(part.parent).free < missing:
        raise OSError(f"{part.parent}: {missing} bytes are needed for {part.stem}, fewer are free")
    _note(part).write_text(note, encoding="utf-8")
    headers = {"Accept-Encoding": "identity"} | ({"If-Range": told.validator} if told.validator else {})
    problem = ""
    for attempt in range(_TRIES):
        time.sleep(_PAUSE if attempt else 0)
        try:
            with part.open("ab") as file:
                http_get(
                    url,
                    file,
                    resume_size=_have(part),
                    headers=headers,
                    expected_size=told.size,
                    displayed_filename=part.stem,
                )
            return
        except HfHubHTTPError as error:
            answer = error.response
            if answer.status_code < 500:
                raise FileNotFoundError(
                    f"{url}: the server answers {answer.status_code} {answer.reason_phrase}"
                ) from None
            problem = f"{answer.status_code} {answer.reason_phrase}"
        except ConnectionError as error:
            problem = str(error)
            break
        except OSError as error:
            if error.errno is None:  # the hub found another length than was announced
                _throw_away(url, part, f"got {_have(part)} bytes, expected {told.size}")
            raise
        except Exception as error:  # the hub's HTTP library gave up, see ``_ask``
            problem = " ".join(str(error).split()) or type(error).__name__
            break
    if not _have(part):
        raise ConnectionError(f"{url}: cannot be reached ({problem})")
    raise ConnectionError(f"{url}: broken off after {_have(part)} bytes ({problem}); run again to go on from there")


def _check(url: str, part: Path, told: _Told, sha256: str) -> None:
    """Refuse, and throw away, what is not the announced file."""
    if told.md5 and base64.b64encode(_digest(part, "md5")).decode() != told.md5:
        _throw_away(url, part, "its MD5 is not the one that the server tells")
    if sha256 and not _digest(part, "sha256").hex().startswith(sha256.lower()):
        _throw_away(url, part, f"its SHA-256 does not begin with {sha256}, as its authors say")


def _throw_away(url: str, part: Path, problem: str) -> None:
    part.unlink()
    _note(part).unlink(missing_ok=True)
    raise ValueError(f"{url}: damaged on the way ({problem}); thrown away, run again to fetch it anew")


def _digest(path: Path, algorithm: str) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, algorithm).digest()


def _have(part: Path) -> int:
    return part.stat().st_size if part.exists() else 0


def _note(part: Path) -> Path:
    """Where it stands which version of the file a ``.part`` belongs to."""
    return part.with_name(f"{part.name}.json")
