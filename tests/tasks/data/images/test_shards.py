"""Tar shards: what is found in them, wherever they are; orders; broken samples; places that go away and come back."""

import gc
import os
import shutil
import threading
from pathlib import Path

import fsspec
import pytest
import torch
import webdataset

import maskgen.tasks.data.patience
from maskgen.data import DataUnavailable, OrderedSource, training_batches
from maskgen.tasks.data.images.places import ShardPlace, expand
from maskgen.tasks.data.images.shards import ShardImages
from maskgen.tasks.data.images.tar import TarShards, index_folder
from tests.tasks.data.images.shard_samples import png, samples, tar, write_shards


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No pauses, and an index of this test's own."""
    monkeypatch.setattr(maskgen.tasks.data.patience, "PAUSE", 0.0)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def numbers(data: ShardImages, seeds: int = 0) -> list[tuple[int, int]]:
    """(number that the picture shows, label) of every sample in order."""
    source = data.train()
    batch = source.batch(range(len(source)), [seeds] * len(source))
    return list(zip((batch["images"][:, 0, 0, 0] * 255).round().int().tolist(), batch["labels"].tolist(), strict=True))


EXPECTED = [(number, number % 2) for number in range(12)]


def test_local_shards(tmp_path: Path) -> None:
    write_shards(tmp_path / "s")
    data = ShardImages(str(tmp_path / "s"), size=8, test_shards=str(tmp_path / "s" / "train-0002.tar"))
    assert numbers(data) == EXPECTED
    assert (data.class_names, data.size, data.window) == (("0", "1"), (8, 8), 0)
    test = data.test()
    assert test is not None
    assert (test.batch([3], [0])["images"] * 255).round().unique().tolist() == [11]
    braces = f"{tmp_path}/s/train-{{0000..0001}}.tar::{tmp_path}/s/train-0002.tar"
    assert numbers(ShardImages(braces, 2, size=8)) == EXPECTED
    assert data.train().pictures.name(5).endswith("train-0001.tar: part/0005")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning")
def test_the_layout_is_webdatasets(tmp_path: Path) -> None:
    """Written and read by the other library: the same samples in the same order."""
    with webdataset.ShardWriter(f"{tmp_path}/w-%03d.tar", maxcount=5, verbose=0) as sink:
        for number in range(12):
            sink.write(
                {"__key__": f"a/b{number:03d}", "cls": number % 3, "png": png(number), "json": {"y": number % 4}}
            )
    theirs = [
        (sample["__key__"], sample["png"], int(sample["cls"]))
        for sample in webdataset.WebDataset(
            f"{tmp_path}/w-{{000..002}}.tar", shardshuffle=False, empty_check=False, cache_size=0
        )
    ]
    gc.collect()  # that library leaves its files open
    places = [ShardPlace(url, tmp_path, 1) for url in expand(f"{tmp_path}/w-{{000..002}}.tar")]
    ours = TarShards(places, label="cls", folder=tmp_path / "i")
    found = [(one.name.rpartition(": ")[2], one.content, one.label) for one in ours.read(range(12))]
    assert found == theirs
    other = TarShards(places, label="json:y", folder=tmp_path / "i")
    assert [one.label for one in other.read(range(12))] == [number % 4 for number in range(12)]


@pytest.mark.parametrize("kind", ["pipe", "packed", "memory", "ranges", "no ranges"])
def test_shards_elsewhere(kind: str, tmp_path: Path) -> None:
    paths = write_shards(tmp_path / "s")
    if kind == "pipe":
        urls = [f"pipe:cat {path}" for path in paths]
    elif kind == "packed":
        urls = []
        for number, path in enumerate(paths):
            packed = path.with_name(f"p{number}.tar.gz")
            packed.write_bytes(tar(samples(range(number * 4, number * 4 + 4)), "w:gz"))
            urls.append(str(packed))
    elif kind == "memory":
        urls = [f"memory://shards/{tmp_path.name}/{path.name}" for path in paths]
        for url, path in zip(urls, paths, strict=True):
            with fsspec.open(url, "wb") as handle:
                handle.write(path.read_bytes())
    else:
        with serve_ranges({path.name: path.read_bytes() for path in paths}, kind == "ranges") as address:
            data = ShardImages("::".join(f"{address}/{path.name}" for path in paths), size=8)
            assert numbers(data) == EXPECTED
            assert bool(list((tmp_path / "cache").rglob("*.tar"))) == (kind == "no ranges")
        return
    data = ShardImages("::".join(urls), size=8)
    assert numbers(data) == EXPECTED
    assert data.window == (0 if kind == "memory" else 16)
    parts = [batch["images"] for batch in training_batches(data.train(), batch_size=5, seed=1, stop=6, workers=1)]
    alone = [batch["images"] for batch in training_batches(data.train(), batch_size=5, seed=1, stop=6)]
    assert torch.equal(torch.cat(parts), torch.cat(alone))


class serve_ranges:  # noqa: N801
    """A server that understands ``bytes=a-b``, or none of it."""

    def __init__(self, content: dict[str, bytes], ranges: bool) -> None:
        from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self, body: bool = True) -> None:
                whole = content.get(self.path.lstrip("/"))
                if whole is None:
                    self.send_error(404)
                    return
                wanted = self.headers.get("Range", "") if ranges else ""
                first, _, last = wanted.removeprefix("bytes=").partition("-")
                part = whole[int(first) : int(last) + 1] if wanted else whole
                self.send_response(206 if wanted else 200)
                if wanted:
                    self.send_header("Content-Range", f"bytes {first}-{int(first) + len(part) - 1}/{len(whole)}")
                self.send_header("Accept-Ranges", "bytes" if ranges else "none")
                self.send_header("Content-Length", str(len(part)))
                self.end_headers()
                if body:
                    self.wfile.write(part)

            def do_HEAD(self) -> None:
                self.do_GET(body=False)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)

    def __enter__(self) -> str:
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{self.server.server_address[1]}"

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()


def test_the_order_is_a_function_of_the_seed(tmp_path: Path) -> None:
    write_shards(tmp_path / "s", shards=6)
    mixed = ShardImages(str(tmp_path / "s"), size=8, window=2).train()
    assert isinstance(mixed, OrderedSource)
    order = mixed.order(3)
    assert sorted(order.tolist()) == list(range(24))
    assert torch.equal(order, mixed.order(3))
    assert not torch.equal(order, mixed.order(4))
    for first in range(0, 24, 8):  # two shards at a time, all of their samples, mixed
        assert len({int(index) // 4 for index in order[first : first + 8]}) == 2
        assert order[first : first + 8].tolist() != sorted(order[first : first + 8].tolist())
    whole = torch.cat([b["labels"] for b in training_batches(mixed, batch_size=6, seed=0, stop=9)])
    late = torch.cat([b["labels"] for b in training_batches(mixed, batch_size=6, seed=0, start=5, stop=9)])
    assert torch.equal(whole[30:], late)
    halves = [
        list(training_batches(mixed, batch_size=6, seed=0, start=3, stop=5, rank=rank, world=2)) for rank in (0, 1)
    ]
    both = torch.cat([part["labels"] for pair in zip(*halves, strict=True) for part in pair])
    assert torch.equal(whole[18:30], both)


def test_the_index_is_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = write_shards(tmp_path / "s")
    scanned: list[str] = []
    real = ShardPlace.scan

    def scan(self: ShardPlace, read: object) -> object:
        scanned.append(os.path.basename(self.url))
        return real(self, read)  # type: ignore[arg-type]

    monkeypatch.setattr(ShardPlace, "scan", scan)
    numbers(ShardImages(str(tmp_path / "s"), size=8))
    assert sorted(scanned) == [path.name for path in paths]
    scanned.clear()
    paths[1].write_bytes(tar(samples(range(20, 25))))
    min(index_folder(None).glob("*.index.safetensors")).write_bytes(b"damaged")
    found = numbers(ShardImages(str(tmp_path / "s"), size=8))
    assert [number for number, _ in found] == [0, 1, 2, 3, 20, 21, 22, 23, 24, 8, 9, 10, 11]
    assert "train-0001.tar" in scanned
    assert len(scanned) in (1, 2)


def test_broken_samples(tmp_path: Path) -> None:
    broken = samples(range(4))
    broken["part/0001.png"] = broken["part/0001.png"][:60]
    del broken["part/0002.cls"]
    broken["part/0003.cls"] = b"cat"
    broken |= {"part/0009.txt": b"no picture", "part/__meta__.json": b"{}"}
    whole = tar(samples(range(10, 20)))
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "a.tar").write_bytes(tar(broken))
    (tmp_path / "s" / "b.tar").write_bytes(whole[: whole.index(b"part/0015.png") + 600])
    data = ShardImages(str(tmp_path / "s"), size=8, broken=0.9)
    data.log_skipped(tmp_path / "skipped.jsonl")
    with pytest.warns(UserWarning, match="skipped so far, all of them in"):
        found = [number for number, _ in numbers(data)]
    assert found == [0, 10, 10, 10, 10, 10, 11, 12, 13, 14, 0]  # the next whole one stands in
    lines = (tmp_path / "skipped.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 5
    for part in ("damaged image", "no label in the sample", "no picture in the sample", "cut off in this sample"):
        assert any(part in line for line in lines)
    with pytest.raises(ValueError, match=r"of 11 examples cannot be used, expected at most a share of 0.05"):
        numbers(ShardImages(str(tmp_path / "s"), size=8, broken=0.05))


def test_shards_that_vanish(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_shards(tmp_path / "s")
    source = ShardImages(str(tmp_path / "s"), size=8).train()
    before = source.batch([0, 5, 11], [0, 0, 0])
    source.pictures.places[1].close()
    shutil.move(tmp_path / "s", tmp_path / "gone")
    slept: list[float] = []
    monkeypatch.setattr(maskgen.tasks.data.patience, "PAUSE", 1.0)

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        if len(slept) == 8:
            shutil.move(tmp_path / "gone", tmp_path / "s")

    monkeypatch.setattr(maskgen.tasks.data.patience.time, "sleep", sleep)
    message = (
        r"train-0001\.tar: cannot be read, 6 times in a row \(No such file or directory\); once it is back, run the"
    )
    with pytest.raises(DataUnavailable, match=message):
        source.batch([5], [0])
    assert slept == [1, 2, 4, 8, 16]
    after = source.batch([0, 5, 11], [0, 0, 0])  # it comes back while we wait
    assert torch.equal(after["images"], before["images"])
    assert slept[5:] == [1, 2, 4]


def test_a_command_that_fails(tmp_path: Path) -> None:
    (path,) = write_shards(tmp_path / "s", shards=1)
    for command in (f"pipe:cat {path}; exit 3", "pipe:exit 3"):
        with pytest.raises(DataUnavailable, match=r"6 times in a row \(the command ended with status 3\)"):
            ShardImages(command, size=8)
    marker = tmp_path / "asked"
    once = f"pipe:cat {path}; test -e {marker} || {{ touch {marker}; exit 1; }}"
    assert len(ShardImages(once, size=8).train()) == 4


def test_fetched_shards_are_given_up_again(tmp_path: Path) -> None:
    paths = write_shards(tmp_path / "s", shards=9)
    urls = "::".join(f"pipe:cat {path}" for path in paths)
    source = ShardImages(urls, size=8, window=1, index=tmp_path / "i").train()
    for index in (0, 10, 20, 30, 35, 0, 35):
        batch = source.batch([index], [0])
        assert (batch["images"] * 255).round().unique().tolist() == [index]
    assert len(list((tmp_path / "i").glob("*.tar"))) <= 4


@pytest.mark.parametrize(
    ("shards", "changes", "error", "message"),
    [
        ("nowhere.tar", {}, FileNotFoundError, r"nowhere\.tar does not exist \(1 of 1 are missing\)"),
        ("s/train-{0000..0009}.tar", {}, FileNotFoundError, r"train-0003\.tar does not exist \(7 of 10 are missing\)"),
        ("empty", {}, ValueError, "shards: got 'empty', where there are no tar files"),
        ("s/train-{0002..0000}.tar", {}, ValueError, "expected a range that goes up"),
        ("s::s", {}, ValueError, "which names a shard twice"),
        ("text.tar", {}, ValueError, r"text\.tar: got a file that is no tar archive"),
        ("s", {"num_classes": 1}, ValueError, "num_classes: got 1, but the shards have a label 1, expected 0 to 0"),
        ("s", {"label": "json"}, ValueError, "got samples without json, expected a class id in each"),
        ("s", {"label": "json.y"}, ValueError, "label: got 'json.y', expected a member's ending"),
        ("s", {"window": -1}, ValueError, "window: got -1"),
        ("s", {"broken": 1.0}, ValueError, "broken: got 1.0"),
        ("s", {"min_scale": 0.0}, ValueError, "min_scale: got 0.0"),
        ("gaps", {}, ValueError, "the labels from 0 to 3 have gaps; give the number of classes"),
        ("s", {"names": "imagenet"}, ValueError, "names: got 1000 from imagenet, expected 2"),
    ],
)
def test_shards_that_cannot_be_used(
    shards: str,
    changes: dict[str, object],
    error: type[Exception],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    write_shards(Path("s"))
    Path("empty").mkdir()
    Path("text.tar").write_text("no archive", encoding="utf-8")
    Path("gaps").mkdir()
    Path("gaps/a.tar").write_bytes(tar({"a.png": png(1), "a.cls": b"0", "b.png": png(1), "b.cls": b"3"}))
    with pytest.raises(error, match=message):
        ShardImages(shards, size=8, **changes)  # type: ignore[arg-type]


def test_without_classes(tmp_path: Path) -> None:
    write_shards(tmp_path / "s")
    data = ShardImages(str(tmp_path / "s"), size=8, label=None)
    assert data.class_names == ()
    assert set(data.train().batch([1, 2], [0, 0])) == {"images"}


def test_gaps_are_allowed_where_the_number_of_classes_is_given(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(tar({"a.png": png(1), "a.cls": b"0", "b.png": png(1), "b.cls": b"3"}))
    names = tmp_path / "names.txt"
    names.write_text("one\ntwo\nthree\nfour\n", encoding="utf-8")
    assert ShardImages(str(tmp_path), 4, size=8, names=str(names)).class_names == ("one", "two", "three", "four")
