"""Images through the library ``datasets``, from files here: stored and as a stream."""

import sys
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch

import maskgen.tasks.data.patience
from maskgen.data import DataUnavailable, OrderedSource, training_batches
from maskgen.tasks.data.identity import describe, differences
from maskgen.tasks.data.images.hub import HubImages, StreamedPictures
from tests.tasks.data.images.shard_samples import png

COUNT = 23


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(maskgen.tasks.data.patience, "PAUSE", 0.0)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hub")
    datasets.disable_progress_bars()


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Three parquet files of pictures that show their numbers; the sixth is broken."""
    folder = tmp_path_factory.mktemp("parquet")
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "label": datasets.ClassLabel(names=["even", "odd"]),
            "number": datasets.Value("int64"),
        }
    )
    numbers = list(range(COUNT))
    pictures = [{"bytes": png(n) if n != 5 else png(n)[:60], "path": f"{n}.png"} for n in numbers]
    table = datasets.Dataset.from_dict(
        {"image": pictures, "label": [n % 2 for n in numbers], "number": numbers}, features=features
    )
    for part in range(3):
        table.shard(3, part).to_parquet(folder / f"{part}.parquet")
    return f"{folder}/*.parquet"


def made(files: str, **changes: Any) -> HubImages:
    return HubImages("parquet", **{"size": 8, "flip": False, "data_files": files, "broken": 0.2, **changes})


def shown(batch: dict[str, torch.Tensor]) -> list[int]:
    return (batch["images"][:, 0, 0, 0] * 255).round().int().tolist()


@pytest.mark.filterwarnings("ignore:.* skipped so far")
def test_stored(files: str, tmp_path: Path) -> None:
    data = made(files, test_split="train")
    assert (data.class_names, len(data.train())) == (("even", "odd"), COUNT)
    data.log_skipped(tmp_path / "skipped.jsonl")
    batch = data.train().batch(range(COUNT), [0] * COUNT)
    assert shown(batch) == [n if n != 5 else 6 for n in range(COUNT)]
    assert batch["labels"].tolist() == [n % 2 if n != 5 else 0 for n in range(COUNT)]
    assert "parquet train: 5: got a damaged image" in (tmp_path / "skipped.jsonl").read_text("utf-8")
    assert data.test() is not None
    plain = made(files, label=None)
    assert plain.class_names == ()
    assert set(plain.train().batch([0], [0])) == {"images"}


@pytest.mark.filterwarnings("ignore:.* skipped so far")
def test_a_stream_goes_on_where_it_stopped(files: str) -> None:
    def batches(**where: int) -> list[list[int]]:
        source = made(files, stream=4, count=COUNT).train()
        return [shown(batch) for batch in training_batches(source, batch_size=6, seed=1, **where)]

    whole = batches(stop=9)
    flat = [number for batch in whole for number in batch]
    assert sorted(flat[:COUNT])[:5] == [0, 1, 2, 3, 4]
    assert len(set(flat[:COUNT])) >= COUNT - 1  # all of them in an epoch, but for the broken one
    assert flat[:COUNT] != flat[COUNT : 2 * COUNT]  # mixed anew
    for start in (2, 5):
        assert batches(start=start, stop=9) == whole[start:]
    halves = [batches(start=2, stop=5, rank=rank, world=2) for rank in (0, 1)]
    assert [a + b for a, b in zip(*halves, strict=True)] == whole[2:5]
    assert isinstance(made(files, stream=4, count=COUNT).train(), OrderedSource)
    assert not isinstance(made(files).train(), OrderedSource)


def test_a_stream_that_breaks_off() -> None:
    """It is opened again at the window that failed."""
    opened: list[int] = []

    def start(first: int) -> Any:
        opened.append(first)
        for number in range(first, 12):
            if number == 6 and len(opened) < 3:
                raise ConnectionError("reset by peer")
            yield {"image": {"bytes": png(number), "path": None}, "label": 0}

    pictures = StreamedPictures(start, 12, 4, ("image", "label"), "far away")
    assert [one.content for one in pictures.read(range(12))] == [png(n) for n in range(12)]
    assert opened == [0, 4, 4]

    def broken(first: int) -> Any:
        raise ConnectionError("reset by peer")
        yield

    with pytest.raises(DataUnavailable, match=r"far away: cannot be read, 6 times in a row \(reset by peer\)"):
        StreamedPictures(broken, 12, 4, ("image", "label"), "far away").read([0])
    with pytest.raises(ValueError, match="far away: got 12 images, expected 13; set count to that"):
        StreamedPictures(start, 13, 4, ("image", "label"), "far away").read([12])


def test_what_cannot_be_used(files: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"has no column 'picture', expected one of image, label, number"):
        made(files, image="picture")
    with pytest.raises(ValueError, match=r"its column 'number' does not name its classes \(ClassLabel\)"):
        made(files, label="number")
    with monkeypatch.context() as patch:
        patch.setattr("maskgen.tasks.data.images.hub._length", lambda table, split: 0)
        with pytest.raises(ValueError, match="does not say how many images train has; give count"):
            made(files, stream=4)
    with pytest.raises(ValueError, match="got stream -1, count 0"):
        made(files, stream=-1)
    monkeypatch.setattr("maskgen.tasks.data.images.hub.get_worker_info", lambda: type("W", (), {"num_workers": 2}))
    stream = made(files, stream=4).train()
    with pytest.raises(ValueError, match="settings.workers: got 2, expected 0: a stream is read by the run itself"):
        stream.batch([0], [0])
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ImportError, match=r'need the library datasets: pip install "maskgen\[data\]"'):
        made(files)


def test_the_same_as_before(tmp_path: Path) -> None:
    """Files made anew under their names are other data; labels and pictures are told apart."""
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["even", "odd"])})

    def described(first: int, turn: int) -> dict[str, Any]:
        pictures = [{"bytes": png(first + number), "path": f"{number}.png"} for number in range(4)]
        columns = {"image": pictures, "label": [(number + turn) % 2 for number in range(4)]}
        datasets.Dataset.from_dict(columns, features=features).to_parquet(tmp_path / "a.parquet")
        return describe(data=made(str(tmp_path / "a.parquet")))

    plain = described(0, 0)
    assert differences(plain, described(0, 0)) == []
    for changes, named in (((0, 1), "labels: 2 of class 0, 2 of class 1 ("), ((9, 0), "content: ")):
        found = differences(plain, described(*changes))
        assert any(line.startswith(f"data.files.train.{named}") for line in found), found
