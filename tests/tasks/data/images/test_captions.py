"""Captions of pictures: beside files, in lists, in shards, in columns; drawn by seeds; missing, empty, odd ones."""

import io
import json
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import datasets
import pytest
from hypothesis import given
from hypothesis import strategies as st

import maskgen.tasks.data.patience
from maskgen.tasks.data import Folder, HubImages, ShardImages
from maskgen.tasks.data.captions import captions_of, draw_caption, is_captioned, lines_of
from maskgen.tasks.data.identity import describe, differences
from maskgen.tasks.data.images.sources import PictureSource
from tests.tasks.data.images.shard_samples import png, tar

COUNT = 10


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(maskgen.tasks.data.patience, "PAUSE", 0.0)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hub")
    datasets.disable_progress_bars()


def pictures(root: Path, count: int = COUNT) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        (root / f"{number:02d}.png").write_bytes(png(number))
    return root


def write(root: Path, captions: Mapping[int, bytes | str], ending: str = "txt") -> None:
    for number, content in captions.items():
        path = root / f"{number:02d}.{ending}"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())


def folder(root: Path, **changes: Any) -> Folder:
    return Folder(root, **{"size": 8, "classes": False, "flip": False, "captions": "txt", **changes})


def said(source: PictureSource, seed: int = 0) -> list[str]:
    numbers = range(len(source))
    source.batch(numbers, [seed] * len(source))
    return source.captions(numbers, [seed] * len(source))


def test_files_beside_pictures(tmp_path: Path) -> None:
    root = pictures(tmp_path / "a")
    write(root, {n: f"number {n}\n\n  the  digit {n} \r\n" for n in range(COUNT)})
    data = folder(root)
    assert data.has_captions
    assert is_captioned(data.train())
    found = {seed: data.train().captions([3], [seed])[0] for seed in range(20)}
    assert set(found.values()) == {"number 3", "the digit 3"}
    assert found == {seed: data.train().captions([3], [seed])[0] for seed in range(20)}
    assert said(data.train()) == [data.train().captions([n], [0])[0] for n in range(COUNT)]
    plain = folder(root, captions=None)
    assert not plain.has_captions
    with pytest.raises(ValueError, match="has no captions; say where they are: captions: txt"):
        plain.train().captions([0], [0])


def test_captions_and_classes_and_a_held_out_half(tmp_path: Path) -> None:
    for half in ("train", "val"):
        for name in ("cat", "dog"):
            write(pictures(tmp_path / half / name, 2), {n: f"a {name} {n} of {half}" for n in range(2)}, "caption")
    data = folder(tmp_path / "train", test_root=tmp_path / "val", classes=True, captions="caption")
    assert said(data.train()) == [f"a {name} {n} of train" for name in ("cat", "dog") for n in range(2)]
    test = data.test()
    assert test is not None
    assert said(test)[0] == "a cat 0 of val"
    assert test.batch([3], [0])["labels"].tolist() == [1]


def test_a_field_of_json(tmp_path: Path) -> None:
    root = pictures(tmp_path / "a")
    for number in range(COUNT):
        value = f"one {number}" if number % 2 else [f"one {number}", f"two {number}"]
        write(root, {number: json.dumps({"caption": value, "score": 5})}, "json")
    data = folder(root, captions="json:caption")
    assert said(data.train())[1] == "one 1"
    assert {data.train().captions([2], [seed])[0] for seed in range(9)} == {"one 2", "two 2"}


LISTS = {
    "heading.csv": "filepath,title\n" + "".join(f'{n:02d}.png,"number {n}, drawn"\n' for n in range(COUNT)),
    "bare.csv": "".join(f'./{n:02d}.png;"number {n}, drawn"\n' for n in range(COUNT)),
    "tabs.tsv": "name\tcaption\n" + "".join(f"{n:02d}.png\tnumber {n}, drawn\n" for n in range(COUNT)),
    "metadata.jsonl": "".join(
        json.dumps({"file_name": f"{n:02d}.png", "text": f"number {n}, drawn"}) + "\n" for n in range(COUNT)
    ),
}


@pytest.mark.parametrize("name", LISTS)
def test_lists(name: str, tmp_path: Path) -> None:
    root = pictures(tmp_path / "a")
    (tmp_path / name).write_text(LISTS[name], encoding="utf-16" if name == "tabs.tsv" else "utf-8")
    data = folder(root, captions=str(tmp_path / name))
    assert said(data.train()) == [f"number {n}, drawn" for n in range(COUNT)]


def test_lines_of_json_may_lack_captions_and_hold_any_character(tmp_path: Path) -> None:
    root, place = pictures(tmp_path / "a", 4), tmp_path / "list.jsonl"
    rows = [{"file_name": f"0{n}.png", "text": f"number\u2028{n}"} for n in range(4)]
    del rows[0]["text"]
    place.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    with pytest.warns(UserWarning, match="1 of 4 files left out: 00.png: no caption in list.jsonl"):
        data = folder(root, captions=str(place), uncaptioned=0.25)
    assert said(data.train()) == ["number 1", "number 2", "number 3"]


def test_several_captions_of_a_list(tmp_path: Path) -> None:
    """As columns, chosen or by their usual names, and as lines."""
    root, place = pictures(tmp_path / "a", 2), tmp_path / "list.csv"
    rows = [f"{root}/0{n}.png,a{n},b{n},c{n}\n" for n in range(2)]
    place.write_text("image,caption_1,caption_2,alt\n" + "".join(rows) + "00.png,d0,,\n", encoding="utf-8")

    def drawn(**changes: Any) -> set[str]:
        source = folder(root, **changes).train()
        return {source.captions([0], [seed])[0] for seed in range(40)}

    assert drawn(captions=str(place)) == {"a0", "b0", "d0"}
    assert drawn(captions=f"{place}:alt,caption_2", uncaptioned=0.0) == {"b0", "c0"}
    with pytest.raises(ValueError, match="has no column 'nope', only image, caption_1"):
        folder(root, captions=f"{place}:nope")
    place.write_text(place.read_text("utf-8") + "gone.png,e,,\n", encoding="utf-8")
    with pytest.warns(UserWarning, match=r"list.csv: 1 lines are for files that .* does not hold, such as gone.png"):
        folder(root, captions=str(place))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "image,caption\n00.png\n", "row 2: got 1 columns, expected 2"),
        ("a.csv", "what,ever\n1,2\n", "has no column of paths, only what, ever"),
        ("a.csv", "image,number\n1,2\n", "has no column of captions"),
        ("a.csv", "", "has no column of paths, only nothing"),
        ("a.jsonl", "{\n", "line 1: not JSON"),
        ("a.jsonl", "3\n", "line 1: got '3', expected an object"),
        ("a.jsonl", '{"path": "00.png", "text": 4}\n', "text: got 4, expected a caption or a list of captions"),
    ],
)
def test_lists_that_cannot_be_read(name: str, content: str, message: str, tmp_path: Path) -> None:
    root = pictures(tmp_path / "a", 1)
    (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        folder(root, captions=str(tmp_path / name))


def test_settings_that_name_nothing(tmp_path: Path) -> None:
    root = pictures(tmp_path / "a", 1)
    with pytest.raises(FileNotFoundError, match="captions: got .*none.csv, expected a list"):
        folder(root, captions=str(tmp_path / "none.csv"))
    for wrong in ("", "txt:field", "json:"):
        with pytest.raises(ValueError, match="captions: got .*, expected the ending of files beside the examples"):
            folder(root, captions=wrong)
    with pytest.raises(ValueError, match="uncaptioned: got 1.5"):
        folder(root, uncaptioned=1.5)


def test_missing_captions_are_counted_and_refused_past_a_share(tmp_path: Path) -> None:
    root = pictures(tmp_path / "a")
    write(root, {n: f"number {n}" for n in range(1, COUNT)})
    with pytest.warns(UserWarning, match=r"1 of 10 files left out: .*00.txt: no such file"):
        data = folder(root)
    assert said(data.train()) == [f"number {n}" for n in range(1, COUNT)]
    (root / "01.txt").write_text(" \n\n", encoding="utf-8")
    with pytest.raises(
        ValueError, match=r"2 of 10 have no caption that can be read, .*0\.1 \(uncaptioned\).*01.txt: holds no"
    ):
        folder(root)
    with pytest.warns(UserWarning, match="2 of 10 files left out"):
        assert len(folder(root, uncaptioned=0.2).train()) == 8


def test_encodings(tmp_path: Path) -> None:
    root, text = pictures(tmp_path / "a"), "größe 大きい 🙂 <person>"
    write(root, dict.fromkeys(range(COUNT), text))
    write(root, {0: text.encode("utf-8-sig"), 1: text.encode("utf-16"), 2: "größe".encode("latin-1")})
    with pytest.warns(
        UserWarning, match=r"1 of 10 files left out: .*02.txt: got a file that is no text .*expected UTF-8"
    ):
        data = folder(root)
    assert said(data.train()) == [text] * 9
    write(root, {2: text, 3: "zeros".encode("utf-16-le")})
    with pytest.warns(UserWarning, match=r"03.txt: got a file that is no text \(it holds zeros\)"):
        folder(root)


@pytest.mark.filterwarnings("ignore:.* skipped so far")
def test_the_caption_is_that_of_the_picture_that_stands_in(tmp_path: Path) -> None:
    root = pictures(tmp_path / "a")
    write(root, {n: f"number {n}" for n in range(COUNT)})
    (root / "04.png").write_bytes(png(4)[:60])
    source = folder(root, broken=0.2).train()
    expected = [f"number {n if n != 4 else 5}" for n in range(COUNT)]
    assert said(source) == expected
    assert folder(root, broken=0.2).train().captions(range(COUNT), [0] * COUNT) == expected  # without a batch before


def test_captions_are_part_of_what_data_are(tmp_path: Path) -> None:
    root = pictures(tmp_path / "a")
    place = tmp_path / "list.jsonl"
    place.write_text(LISTS["metadata.jsonl"], encoding="utf-8")
    before = describe(data=folder(root, captions=str(place)))
    (tmp_path / "moved.jsonl").write_text(LISTS["metadata.jsonl"], encoding="utf-8")
    assert differences(before, describe(data=folder(root, captions=str(tmp_path / "moved.jsonl")))) == []
    place.write_text(LISTS["metadata.jsonl"].replace("number 7", "numeral 7"), encoding="utf-8")
    (changed,) = differences(before, describe(data=folder(root, captions=str(place))))
    assert "captions" in changed
    assert "captions" not in json.dumps(describe(data=folder(root, captions=None)))


def shard(tmp_path: Path, extra: Mapping[str, bytes] | None = None, **changes: Any) -> ShardImages:
    members = {}
    for number in range(COUNT):
        members[f"{number:04d}.png"] = png(number)
        members[f"{number:04d}.txt"] = f"number {number}\nthe {number}".encode()
        members[f"{number:04d}.json"] = json.dumps({"alt": f"alt {number}", "y": number % 2}).encode()
    members |= extra or {}
    path = tmp_path / f"{abs(hash(tuple(members.items())))}.tar"
    path.write_bytes(tar({name: content for name, content in members.items() if content}))
    return ShardImages(str(path), **{"size": 8, "flip": False, "label": None, "captions": "txt", **changes})


def test_shards(tmp_path: Path) -> None:
    source = shard(tmp_path).train()
    assert {source.captions([3], [seed])[0] for seed in range(9)} == {"number 3", "the 3"}
    both = shard(tmp_path, captions="json:alt", label="json:y")
    assert said(both.train()) == [f"alt {n}" for n in range(COUNT)]
    assert both.train().batch([3], [0])["labels"].tolist() == [1]
    assert not shard(tmp_path, captions=None).has_captions
    with pytest.raises(ValueError, match="captions: got 'list.csv', expected the ending"):
        shard(tmp_path, captions="list.csv")
    first, other = describe(data=shard(tmp_path)), describe(data=shard(tmp_path, captions="json:alt"))
    assert any("captions" in line for line in differences(first, other))


def test_shards_without_some_captions(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match=r"1 of 10 files left out: .*0004: no txt"):
        data = shard(tmp_path, {"0004.txt": b""})
    batch = data.train().batch(range(9), range(9))
    assert (batch["images"][:, 0, 0, 0] * 255).round().int().tolist() == [0, 1, 2, 3, 5, 6, 7, 8, 9]
    assert said(data.train())[4] in ("number 5", "the 5")
    assert data.train().pictures.name(4).endswith(": 0005")  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match=r"2 of 10 have no caption"):
        shard(tmp_path, {"0004.txt": b"", "0005.txt": b"\xff\xff"})


def test_members_that_come_again(tmp_path: Path) -> None:
    """In a row, as LAION has them, or far away from their sample; what was missing may come late."""
    path = tmp_path / "again.tar"
    names = ["0.png", "0.png", "0.txt", "1.png", "1.txt", "0.png", "0.txt", "2.png", "1.txt", "2.txt"]
    contents = [png(0), png(9), b"zero", png(1), b"one", png(8), b"nine", png(2), b"uno", b"two"]
    with tarfile.open(path, "w") as archive:
        for name, content in zip(names, contents, strict=True):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    with pytest.warns(UserWarning, match="4 members come again under the name of one before them; they are skipped"):
        data = ShardImages(str(path), size=8, label=None, flip=False, captions="txt")
    assert said(data.train()) == ["zero", "one", "two"]
    batch = data.train().batch(range(3), range(3))
    assert (batch["images"][:, 0, 0, 0] * 255).round().int().tolist() == [0, 1, 2]


@pytest.mark.parametrize("stream", [0, 4])
@pytest.mark.filterwarnings("ignore:.* skipped so far")
def test_columns(stream: int, tmp_path: Path) -> None:
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "text": datasets.Value("string"),
            "texts": datasets.List(datasets.Value("string")),
            "number": datasets.Value("int64"),
        }
    )
    rows = {
        "image": [{"bytes": png(n), "path": None} for n in range(COUNT)],
        "text": [f"number {n}" if n != 2 else None for n in range(COUNT)],
        "texts": [[f"number {n}", f"the {n}"] for n in range(COUNT)],
        "number": list(range(COUNT)),
    }
    datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "a.parquet")

    def hub(captions: str) -> HubImages:
        files, told = str(tmp_path / "a.parquet"), {"size": 8, "flip": False, "label": None, "broken": 0.2}
        return HubImages("parquet", data_files=files, captions=captions, stream=stream, count=COUNT, **told)  # type: ignore[arg-type]

    several = hub("texts").train()
    assert {several.captions([3], [seed])[0] for seed in range(9)} == {"number 3", "the 3"}
    if stream:
        assert said(hub("text").train()) == [f"number {n if n != 2 else 3}" for n in range(COUNT)]
    else:
        with pytest.warns(UserWarning, match="1 of 10 files left out: parquet train: 2: no caption"):
            data = hub("text")
        assert said(data.train()) == [f"number {n}" for n in range(COUNT) if n != 2]
        assert any("captions" in line for line in differences(describe(data=data), describe(data=hub("texts"))))
        with pytest.raises(ValueError, match="number: got 0, expected a caption or a list of captions"):
            hub("number")
    with pytest.raises(ValueError, match="has no column 'nope'"):
        hub("nope")


@given(st.lists(st.text(min_size=1), min_size=1, max_size=5, unique=True), st.integers(0, 2**63 - 1))
def test_a_drawn_caption_is_one_of_them(texts: list[str], seed: int) -> None:
    assert draw_caption(tuple(texts), seed) in texts
    assert draw_caption(tuple(texts), seed) == draw_caption(tuple(texts), seed)


@given(st.text())
def test_lines_hold_no_empty_caption(text: str) -> None:
    assert all(line and line == " ".join(line.split()) for line in (*lines_of(text), *captions_of(text, "x")))


def test_all_captions_come_equally_often() -> None:
    drawn = [draw_caption(("a", "b", "c"), seed) for seed in range(3000)]
    assert all(900 < drawn.count(one) < 1100 for one in "abc")
