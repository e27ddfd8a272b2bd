"""Captions of samples wherever they are, and those that are missing."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from maskgen.tasks.data.broken import Broken
from maskgen.tasks.data.images.folders import Folder
from maskgen.tasks.evaluation.sets.base import DataSamples, FileSamples, SampleSet, Subset, drawn
from maskgen.tasks.evaluation.sets.captions import read_all_captions
from maskgen.tasks.evaluation.sets.classes import MatchedSamples
from tests.tasks.evaluation.support import pictures

TEXTS = ["a cat", "zwei Hunde 🐕", "קטן", "a house"]


def folder(place: Path) -> Path:
    pictures(place, 4, 0)
    for number, text in enumerate(TEXTS):
        side = "right" if number % 2 else "left"
        (place / side / f"{number:04d}.txt").write_text(f"{text}\n", encoding="utf-8")
    (place / "README.txt").write_text("what this is", encoding="utf-8")
    return place


def in_a_zip(place: Path) -> SampleSet:
    return FileSamples(Path(shutil.make_archive(str(place), "zip", folder(place))))


def of_a_manifest(place: Path) -> SampleSet:
    pictures(place, 4, 0)
    files = sorted(path.relative_to(place).as_posix() for path in place.rglob("*.png"))
    items = [{"file": name, "seed": 0, "prompt": TEXTS[int(Path(name).stem)]} for name in files]
    (place / "manifest.json").write_text(json.dumps({"items": items}), encoding="utf-8")
    return FileSamples(place)


def of_data(place: Path) -> SampleSet:
    return DataSamples(Folder(root=folder(place), size=8, captions="txt"), "train")


PLACES = {
    "folder": lambda place: FileSamples(folder(place)),
    "zip": in_a_zip,
    "manifest": of_a_manifest,
    "data": of_data,
}


@pytest.mark.parametrize("kind", PLACES)
def test_wherever_they_are(kind: str, tmp_path: Path) -> None:
    make: Callable[[Path], SampleSet] = PLACES[kind]
    samples = make(tmp_path / "set")
    sorted_by_folder = [TEXTS[number] for number in (0, 2, 1, 3)]
    assert samples.captions(range(4)) == sorted_by_folder
    some = MatchedSamples(Subset(samples, [3, 1]), samples.class_names, "others")
    assert some.captions(range(2)) == [sorted_by_folder[3], sorted_by_folder[1]]
    found = read_all_captions(drawn(samples, 3), 0.0)
    assert found.captions == [sorted_by_folder[number] for number in (drawn(samples, 3).place(row) for row in range(3))]


def test_one_of_several_is_the_same_every_time(tmp_path: Path) -> None:
    place = folder(tmp_path / "set")
    for path in place.rglob("0*.txt"):
        path.write_text("\n".join(f"{path.stem} {number}" for number in range(5)), encoding="utf-8")
    first, data = FileSamples(place), DataSamples(Folder(root=place, size=8, captions="txt"), "train")
    captions = first.captions(range(4))
    assert captions == FileSamples(place).captions(range(4)) == data.captions(range(4))
    assert captions is not None
    assert len({str(one)[-1] for one in captions}) > 1


def test_missing_ones_are_counted_and_refused_past_a_share(tmp_path: Path) -> None:
    place = folder(tmp_path / "set")
    (place / "left" / "0000.txt").unlink()
    samples = FileSamples(place)
    with pytest.raises(ValueError, match=r"1 of 4 samples have no caption that can be read, .*0.2 \(settings.broken\)"):
        read_all_captions(samples, 0.2)
    found = read_all_captions(samples, 0.25)
    assert found.numbers == [1, 2, 3]
    assert found.warning("set") == ["1 of 4 samples of set have no caption and were left out of the text measures"]
    (place / "left" / "0002.txt").write_bytes(b"\xff\xfe\xff")
    (place / "right" / "0001.txt").write_text("  \n", encoding="utf-8")
    texts = FileSamples(place).captions(range(4))
    assert texts is not None
    reasons = [one.reason for one in texts if isinstance(one, Broken)]
    assert len(reasons) == 3
    assert "0000.png: no file of its name with the ending txt" in reasons[0]
    assert "0002.txt" in reasons[1]
    assert "0001.png: nothing in the ending txt" in reasons[2] or "0001.txt" in reasons[2]


def test_a_manifest_without_some_prompts(tmp_path: Path) -> None:
    of_a_manifest(tmp_path)
    path = tmp_path / "manifest.json"
    told = json.loads(path.read_text("utf-8"))
    told["items"][1]["prompt"] = "  "
    path.write_text(json.dumps(told), encoding="utf-8")
    found = read_all_captions(FileSamples(tmp_path), 0.3)
    assert found.numbers == [0, 2, 3]
    assert "the manifest has no prompt of it" in found.missing[0]


def test_none_at_all(tmp_path: Path) -> None:
    samples = FileSamples(pictures(tmp_path / "set", 4, 0))
    assert samples.captions(range(4)) is None
    assert DataSamples(Folder(root=tmp_path / "set", size=8), "train").captions(range(4)) is None
    with pytest.raises(ValueError, match="has no captions; expected a folder of `maskgen generate --prompts`, a file"):
        read_all_captions(samples, 0.5)
