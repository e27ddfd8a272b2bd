"""Downloads from a server on this machine: whole, broken off and resumed, changed, damaged, refused, and two at once."""

import hashlib
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub.file_download
import pytest

import maskgen.tasks.published.download
from maskgen.tasks.published.download import download, is_offline
from tests.tasks.published.fileserver import Files, serve

ROOT = Path(__file__).resolve().parents[3]
BODY = random.Random(0).randbytes(300_000)
NOTHING = [0] * 6  # answers without a byte, until the hub's library gives up


@pytest.fixture
def files(monkeypatch: pytest.MonkeyPatch) -> Iterator[Files]:
    monkeypatch.delenv("HF_HUB_OFFLINE")
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(maskgen.tasks.published.download, "_PAUSE", 0.0)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)  # read when it was imported
    monkeypatch.setattr(huggingface_hub.constants, "DOWNLOAD_CHUNK_SIZE", 100)  # less than that is lost at a break
    monkeypatch.setattr(huggingface_hub.file_download.time, "sleep", lambda seconds: None)
    with serve(Files({"weights": BODY})) as served:
        yield served


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.suffix != ".lock")


def test_a_whole_file_once(
    files: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TQDM_POSITION", "-1")  # the hub's bar shows on a terminal only, unless this is set
    target = tmp_path / "deep" / "weights"
    for _ in range(2):
        assert download(files.url("weights"), target) == target
        assert target.read_bytes() == BODY
    assert files.requests == [""]
    assert names(target.parent) == ["weights"]
    assert "weights: 100%" in capsys.readouterr().err


def test_the_hash_in_a_name(files: Files, tmp_path: Path) -> None:
    digest = hashlib.sha256(BODY).hexdigest()
    for start in (digest[:8], digest.upper()):
        assert download(files.url("weights"), tmp_path / start, sha256=start).read_bytes() == BODY
    with pytest.raises(
        ValueError, match=r"damaged on the way \(its SHA-256 does not begin with 0{8}, as its authors say"
    ):
        download(files.url("weights"), tmp_path / "w", sha256="0" * 8)
    assert "w" not in names(tmp_path)
    (tmp_path / digest[:8]).write_bytes(b"of another version")  # kept under the same name
    assert download(files.url("weights"), tmp_path / digest[:8], sha256=digest[:8]).read_bytes() == BODY


def test_broken_off_and_resumed_in_one_call(files: Files, tmp_path: Path) -> None:
    files.break_after = [100_000, 50_000, 0]
    download(files.url("weights"), tmp_path / "w")
    assert (tmp_path / "w").read_bytes() == BODY
    assert files.requests == ["", "bytes=100000-", "bytes=150000-", "bytes=150000-"]


def test_broken_off_and_resumed_in_the_next_call(files: Files, tmp_path: Path) -> None:
    files.break_after = [100_000, 400, *NOTHING]
    with pytest.raises(ConnectionError, match=r"broken off after 100400 bytes .*; run again to go on") as error:
        download(files.url("weights"), tmp_path / "w")
    assert "\n" not in str(error.value)
    assert names(tmp_path) == ["w.part", "w.part.json"]
    download(files.url("weights"), tmp_path / "w")
    assert (tmp_path / "w").read_bytes() == BODY
    assert files.requests[-1] == "bytes=100400-"
    assert names(tmp_path) == ["w"]


def test_a_file_that_changes_meanwhile_comes_whole(files: Files, tmp_path: Path) -> None:
    files.break_after = [100_000, *NOTHING]
    with pytest.raises(ConnectionError):
        download(files.url("weights"), tmp_path / "w")
    files.content["weights"], files.version = BODY[::-1], "2"
    download(files.url("weights"), tmp_path / "w")
    assert (tmp_path / "w").read_bytes() == BODY[::-1]


def test_a_server_without_ranges(files: Files, tmp_path: Path) -> None:
    files.ranges, files.break_after = False, [100_000]
    download(files.url("weights"), tmp_path / "w")
    assert (tmp_path / "w").read_bytes() == BODY


def test_a_server_that_tells_nothing_beforehand(files: Files, tmp_path: Path) -> None:
    """What broke off is resumed within a call, and not built upon by the next one."""
    files.head, files.break_after = False, [100_000]
    download(files.url("weights"), tmp_path / "w")
    assert (tmp_path / "w").read_bytes() == BODY
    files.break_after = [100_000, *NOTHING]
    with pytest.raises(ConnectionError):
        download(files.url("weights"), tmp_path / "v")
    download(files.url("weights"), tmp_path / "v")
    assert (tmp_path / "v").read_bytes() == BODY
    assert files.requests[-1] == ""


@pytest.mark.parametrize("note", ["", "{", "[1]", '{"validator": "\\"9-9\\""}'])
def test_a_part_of_unknown_origin_is_not_built_upon(note: str, files: Files, tmp_path: Path) -> None:
    (tmp_path / "w.part").write_bytes(b"something else")
    if note:
        (tmp_path / "w.part.json").write_text(note, encoding="utf-8")
    download(files.url("weights"), tmp_path / "w")
    assert (tmp_path / "w").read_bytes() == BODY


def test_a_part_that_is_too_long_is_thrown_away(files: Files, tmp_path: Path) -> None:
    files.break_after = [100_000, *NOTHING]
    with pytest.raises(ConnectionError):
        download(files.url("weights"), tmp_path / "w")
    with (tmp_path / "w.part").open("ab") as handle:
        handle.write(BODY)
    download(files.url("weights"), tmp_path / "w")
    assert (tmp_path / "w").read_bytes() == BODY


def test_the_servers_md5_is_checked(files: Files, tmp_path: Path) -> None:
    files.md5 = "right"
    files.break_after = [100_000]
    download(files.url("weights"), tmp_path / "w")
    files.md5 = "AAAAAAAAAAAAAAAAAAAAAA=="
    with pytest.raises(ValueError, match=r"damaged on the way \(its MD5 is not .*\); thrown away, run again") as error:
        download(files.url("weights"), tmp_path / "v")
    assert "\n" not in str(error.value)
    assert names(tmp_path) == ["w"]


def test_refusals(files: Files, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"/nothing: the server answers 404 Not Found"):
        download(files.url("nothing"), tmp_path / "w")
    files.refuse = [503, 500]
    download(files.url("weights"), tmp_path / "w")  # a server that is busy is asked again
    assert (tmp_path / "w").read_bytes() == BODY
    files.refuse = [503] * 5
    with pytest.raises(ConnectionError, match="cannot be reached"):
        download(files.url("weights"), tmp_path / "v")


def test_nobody_there(files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConnectionError, match="http://127.0.0.1:9/w: cannot be reached") as error:
        download("http://127.0.0.1:9/w", tmp_path / "w")
    assert "\n" not in str(error.value)
    for value, offline in (("1", True), ("true", True), ("0", False), ("", False)):
        monkeypatch.setenv("HF_HUB_OFFLINE", value)
        assert is_offline() is offline
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ConnectionError, match="not in the cache, and HF_HUB_OFFLINE is set"):
        download(files.url("weights"), tmp_path / "w")
    assert files.requests == []


def test_a_full_disk_is_said_before_the_download(files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = maskgen.tasks.published.download.shutil.disk_usage
    monkeypatch.setattr(
        maskgen.tasks.published.download.shutil, "disk_usage", lambda path: real(path)._replace(free=1000)
    )
    with pytest.raises(OSError, match=r"300000 bytes are needed for w, fewer are free"):
        download(files.url("weights"), tmp_path / "w")
    assert not (tmp_path / "w.part").exists()


def test_two_processes_at_once(files: Files, tmp_path: Path) -> None:
    """Both come back with the file, and it was fetched once."""
    code = (
        "import sys; from pathlib import Path; from maskgen.tasks.published.download import download; "
        "download(sys.argv[1], Path(sys.argv[2]))"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    started = [
        subprocess.Popen([sys.executable, "-c", code, files.url("weights"), str(tmp_path / "w")], env=environment)
        for _ in range(2)
    ]
    assert [process.wait(timeout=120) for process in started] == [0, 0]
    assert (tmp_path / "w").read_bytes() == BODY
    assert files.requests == [""]
