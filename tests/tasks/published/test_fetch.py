"""Published models by name: downloaded from a server on this machine, converted once, and what can go wrong."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub.file_download
import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError

import maskgen.tasks.published.convert
from maskgen.tasks.pipeline import Pipeline
from maskgen.tasks.published import catalog
from maskgen.tasks.published.convert import cache_folder, fetch
from maskgen.tasks.published.entries.base import Published, Weights
from tests.tasks.commandline import files as listing
from tests.tasks.commandline import refused, run
from tests.tasks.published.fileserver import Files, serve
from tests.tasks.published.tiny_maskgit import NAME, TRANSFORMER, entry, put_into_catalog, write

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def official(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write(tmp_path_factory.mktemp("official"))


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    put_into_catalog(monkeypatch, tmp_path)


@pytest.fixture
def served(official: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> Iterator[Files]:
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)  # read when it was imported
    monkeypatch.setattr(huggingface_hub.constants, "DOWNLOAD_CHUNK_SIZE", 100)
    monkeypatch.setattr(huggingface_hub.file_download.time, "sleep", lambda seconds: None)
    content = {part: official[part].read_bytes() for part in ("tokenizer", "transformer")}
    with serve(Files(content)) as files:
        monkeypatch.setitem(catalog.CATALOG, NAME, entry(NAME, 8, files.address))
        yield files


def test_downloaded_and_converted_once(served: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    served.break_after = [1000]
    pipe = Pipeline.from_pretrained(NAME, device="cpu")
    assert pipe.transformer.config == TRANSFORMER
    assert served.requests == ["", "bytes=1000-", ""]
    assert sorted(path.name for path in cache_folder().iterdir() if path.suffix != ".lock") == [
        "downloads",
        f"{NAME}-1",
    ]
    assert [path.name for path in (cache_folder() / "downloads").iterdir() if path.suffix != ".lock"] == []
    served.content.clear()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")  # and from then on without a network
    again = Pipeline.from_pretrained(NAME, device="cpu")
    assert torch.equal(again.transformer.head.weight, pipe.transformer.head.weight)
    assert fetch(NAME) == cache_folder() / f"{NAME}-1"
    assert len(served.requests) == 3


def test_in_the_command_line(served: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("generate", "--model", NAME, "--labels", "golden retriever", "--steps", 2, "--out", tmp_path / "out")
    assert listing(tmp_path / "out") == ["grid.png", "label-0207_seed-00000000.png", "manifest.json"]
    capsys.readouterr()
    run("info", "--model", NAME)
    assert json.loads(capsys.readouterr().out)["sampling"]["steps"] == 12


def test_a_download_that_broke_off_goes_on(served: Files) -> None:
    served.break_after = [None, 1000, *[0] * 6]
    with pytest.raises(ConnectionError, match="broken off after 1000 bytes") as error:
        Pipeline.from_pretrained(NAME)
    assert f"With the files at hand: maskgen convert --family {NAME} --tokenizer FILE --transformer FILE" in str(
        error.value
    )
    Pipeline.from_pretrained(NAME, device="cpu")
    assert served.requests[-1] == "bytes=1000-"
    assert len(served.requests) == 9  # the tokenizer was not fetched again


def test_a_body_of_another_model_is_refused(served: Files) -> None:
    served.content["transformer"] = served.content["tokenizer"]
    with pytest.raises(ValueError, match="this looks like a MaskGIT tokenizer"):
        Pipeline.from_pretrained(NAME)
    assert not (cache_folder() / f"{NAME}-1").exists()


def test_no_network_and_nothing_cached(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    line = refused(capsys, "generate", "--model", NAME, "--out", tmp_path / "out")
    assert "not in the cache, and HF_HUB_OFFLINE is set" in line
    assert f"maskgen convert --family {NAME} --tokenizer FILE --transformer FILE --out DIR" in line


def test_nobody_answers(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE")
    line = refused(capsys, "info", "--model", NAME)
    assert "cannot be reached" in line
    assert "maskgen convert --family" in line


def test_files_of_the_hub(official: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str]] = []

    def download(repository: str, file: str) -> str:
        asked.append((repository, file))
        if repository == "gone/away":
            raise LocalEntryNotFoundError("offline")
        return str(official[file])

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    parts = {
        part: Weights(family=f"maskgit-{part}", sizes=NAME, repository="some/one", file=part)
        for part in ("tokenizer", "transformer")
    }
    plain = Published(name=NAME, licence="none", signal_size=(8, 8), **parts)  # type: ignore[arg-type]
    monkeypatch.setitem(catalog.CATALOG, NAME, plain)
    assert Pipeline.from_pretrained(NAME, device="cpu").config.class_names == ()
    assert asked == [("some/one", "tokenizer"), ("some/one", "transformer")]
    assert official["tokenizer"].is_file()  # the Hub's own cache is left alone
    gone = Weights(family="maskgit-tokenizer", sizes=NAME, repository="gone/away", file="w")
    lost = Published(name="lost", tokenizer=gone, licence="none", signal_size=(8, 8))
    monkeypatch.setitem(catalog.CATALOG, "lost", lost)
    with pytest.raises(ConnectionError, match="the Hugging Face Hub cannot be reached.*convert --family lost --tok"):
        fetch("lost")


def test_the_hub_offline_for_real() -> None:
    """huggingface_hub itas the tests' environment has it: offline, with an empty cache."""
    with pytest.raises(ConnectionError, match=r"vq_ds16_c2i\.pt: not in the cache, and the Hugging Face Hub"):
        fetch("llamagen-vq16")


def test_halves_are_no_pipelines() -> None:
    for name, part in (("llamagen-vq16", "tokenizer"), ("imagebert-titok-l32", "transformer")):
        with pytest.raises(ValueError, match=rf"{name}: a {part} alone, not a whole model; .*fetch\('{name}'\)"):
            Pipeline.from_pretrained(name)


@pytest.mark.parametrize("kind", ["a file in its place", "a system folder"])
def test_a_cache_that_cannot_be_written(
    kind: str, served: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    place = tmp_path / "file"
    place.touch()
    root = str(place) if kind == "a file in its place" else "/proc/maskgen"
    monkeypatch.setattr("huggingface_hub.constants.HF_ASSETS_CACHE", root)
    line = refused(capsys, "info", "--model", NAME)
    assert line.startswith(f"{root}/maskgen: the cache cannot be written to (")
    assert "set HF_HOME to a folder that can, or convert files at hand: maskgen convert --family" in line
    assert served.requests == []


def test_a_read_only_folder(served: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    """Root may write everywhere, so the refusal is the file system's word for word."""

    def refuse(*args: object, **kwargs: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(OSError, match=r"the cache cannot be written to \(Permission denied\)"):
        fetch(NAME)


def test_a_read_only_cache_that_holds_the_model_is_enough(served: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    fetch(NAME)

    def read_only(*args: object, **kwargs: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", read_only)
    monkeypatch.setattr(maskgen.tasks.published.convert, "FileLock", read_only)
    assert Pipeline.from_pretrained(NAME, device="cpu").transformer.config == TRANSFORMER


def test_two_processes_at_once(served: Files, tmp_path: Path) -> None:
    """Both get the model; each file is fetched once and converted once."""
    code = f"""
import sys
from tests.tasks.published import tiny_maskgit as t
from maskgen.tasks.pipeline import Pipeline
t.maskgit.PUBLISHED[t.NAME], t.tokenizers.PUBLISHED[t.NAME] = t.TRANSFORMER, t.TOKENIZER
t.catalog.CATALOG[t.NAME] = t.entry(t.NAME, 8, {served.address!r})
print(Pipeline.from_pretrained(t.NAME, device="cpu").transformer.config == t.TRANSFORMER)
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HOME": str(tmp_path / "home")}
    started = [
        subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    assert [process.communicate(timeout=180)[0] for process in started] == ["True\n", "True\n"]
    assert served.requests == ["", ""]
    assert (tmp_path / "home" / "assets" / "maskgen" / f"{NAME}-1" / "pipeline.json").is_file()
