"""What of a folder or shard is no example is said, with its number and the reason; what can be read is used."""

import os
import shutil
import unicodedata
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from maskgen.tasks.data import Folder, ShardImages, SoundFolder, VideoFolder
from maskgen.tasks.data.base import SignalData
from maskgen.tasks.data.images.labels import read_labels
from maskgen.tasks.evaluation.sets.base import open_samples
from maskgen.tasks.media.audio.files import save_sound
from maskgen.tasks.media.video.files import save_video
from tests.tasks.data.images.shard_samples import png, tar


def image(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (16, 16), (90, 20, 20)).save(path.with_suffix(".png"))
    path.with_suffix(".png").rename(path)


def sound(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_sound(torch.rand(1, 4000) - 0.5, path.with_suffix(".wav"), 8000)
    path.with_suffix(".wav").rename(path)


def clip(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_video(np.full((6, 16, 16, 3), 90, np.uint8), path.with_suffix(".mp4"), 8)
    path.with_suffix(".mp4").rename(path)


Kind = tuple[str, Callable[[Path], None], Callable[[Path], SignalData]]
KINDS: list[Kind] = [
    (".png", image, lambda root: Folder(root, 16)),
    (".wav", sound, lambda root: SoundFolder(root, 8000, 0.25, labels=True, held_out=0.0)),
    (".mp4", clip, lambda root: VideoFolder(root, frames=4, height=16, labels=True, held_out=0.0)),
]
PLAIN: dict[str, Callable[[Path], SignalData]] = {
    ".png": lambda root: Folder(root, 16, classes=False),
    ".wav": lambda root: SoundFolder(root, 8000, 0.25, held_out=0.0),
    ".mp4": lambda root: VideoFolder(root, frames=4, height=16, held_out=0.0),
}
each_kind = pytest.mark.parametrize(("end", "write", "data"), KINDS, ids=("image", "audio", "video"))


@each_kind
def test_loose_files_and_halves_are_no_classes(
    end: str, write: Callable[[Path], None], data: Callable[[Path], SignalData], tmp_path: Path
) -> None:
    for name in (f"a{end}", f"b{end}", f"cat/c{end}"):
        write(tmp_path / "loose" / name)
    with pytest.raises(ValueError, match=rf"loose: got 2 files such as a\{end} outside of any folder, expected one"):
        data(tmp_path / "loose")
    for half in ("train", "Val"):
        for name in ("cat", "dog"):
            write(tmp_path / "split" / half / name / f"a{end}")
    with pytest.raises(
        ValueError, match="split: its folders Val, train are parts of a data set and no classes; name one"
    ):
        data(tmp_path / "split")
    assert data(tmp_path / "split" / "train").class_names == ("cat", "dog")
    with pytest.warns(
        UserWarning, match="split: the files of Val, train are all used; name one of these folders as root"
    ):
        modality = PLAIN[end](tmp_path / "split").modality
    with pytest.warns(UserWarning, match="split: the files of Val, train are all used"):
        assert open_samples(tmp_path / "split", modality).labels is None  # type: ignore[arg-type]


@each_kind
def test_what_systems_put_there_is_nobodys_data(
    end: str, write: Callable[[Path], None], data: Callable[[Path], SignalData], tmp_path: Path
) -> None:
    for name in ("cat", "dog"):
        write(tmp_path / "r" / name / f"a{end}")
        shutil.copy(tmp_path / "r" / name / f"a{end}", tmp_path / "r" / name / f".hidden{end}")
    for name in ("__MACOSX/cat", "@eaDir", "cat/@eaDir/a", ".git"):
        write(tmp_path / "r" / name / f"thumb{end}")
    for name in ("Thumbs.db", "cat/.DS_Store", "cat/desktop.ini", "cat/._a.png", "README", "labels.csv", "cat/a.json"):
        (tmp_path / "r" / name).write_bytes(b"\0\5" if name.endswith(("db", "Store")) else b"text")
    (tmp_path / "r" / "@eaDir" / "deep").mkdir()
    found = data(tmp_path / "r")
    assert (found.class_names, len(found.train())) == (("cat", "dog"), 2)


@each_kind
def test_linked_folders_count_and_loops_end(
    end: str, write: Callable[[Path], None], data: Callable[[Path], SignalData], tmp_path: Path
) -> None:
    for name in ("rain", "wind"):
        for number in range(3):
            write(tmp_path / "disk" / name / f"{number}{end}")
    (tmp_path / "root").mkdir()
    (tmp_path / "disk" / "rain").rename(tmp_path / "root" / "rain")
    os.symlink(tmp_path / "disk" / "wind", tmp_path / "root" / "wind")
    os.symlink(tmp_path / "root", tmp_path / "root" / "rain" / "loop")
    found = data(tmp_path / "root")
    assert (found.class_names, len(found.train())) == (("rain", "wind"), 6)
    assert len(open_samples(tmp_path / "root", found.modality)) == 6  # type: ignore[arg-type]


@each_kind
def test_a_file_is_known_by_its_content_where_its_name_says_nothing(
    end: str, write: Callable[[Path], None], data: Callable[[Path], SignalData], tmp_path: Path
) -> None:
    for name in (f"a{end}", "nameless", f"b{end}_large"):
        write(tmp_path / "r" / "cat" / name)
    for name, content in (("x.npy", b"\x93NUMPY\1\0"), ("y.zip", b"PK\3\4\0"), ("z", b"\0\1\2")):
        (tmp_path / "r" / "cat" / name).write_bytes(content)
    for other, write_other, _ in KINDS:
        if other != end:
            write_other(tmp_path / "r" / "cat" / f"other{other}")
    message = r"r: 5 files are left out: 1 .*2 .*other.*; 1 |r: 5 files are left out: "
    with pytest.warns(UserWarning, match=message) as said:
        found = data(tmp_path / "r")
    assert len(found.train()) == 3
    told = str(said[0].message)
    for reason in ("1 .npy files, which are of no known kind (cat/x.npy)", "1 archives, which have to be unpacked"):
        assert reason in told
    for other, kind in ((".png", "image"), (".wav", "audio"), (".mp4", "video")):
        assert (f"1 {kind} files (cat/other{other})" in told) is (other != end)


@each_kind
def test_links_to_nothing_are_broken_examples(
    end: str, write: Callable[[Path], None], data: Callable[[Path], SignalData], tmp_path: Path
) -> None:
    for number in range(9):
        write(tmp_path / "cat" / f"{number}{end}")
    os.symlink(tmp_path / "gone", tmp_path / "cat" / f"z{end}")

    def read_all() -> None:
        source = (Folder(tmp_path, 16, broken=0.2) if end == ".png" else data(tmp_path)).train()
        source.batch(range(len(source)), range(len(source)))

    with pytest.warns(UserWarning, match=rf"(1 of 10 files left out|1 skipped so far): .*z\{end}"):
        read_all()


def test_further_pictures_of_a_file_are_said(tmp_path: Path) -> None:
    image(tmp_path / "cat" / "a.png")
    with Image.open(tmp_path / "cat" / "a.png") as one:
        frames = [one.copy(), Image.new("RGB", one.size)]
    frames[0].save(tmp_path / "cat" / "b.gif", save_all=True, append_images=frames[1:])
    source = Folder(tmp_path, 16).train()
    source.batch([0], [0])
    with pytest.warns(UserWarning, match="some files of the data hold several pictures: the first of each is used"):
        source.batch([1], [0])


def test_formats_of_pictures(tmp_path: Path) -> None:
    """All that PIL reads are pictures; one that it does not read is said."""
    ends = ("jfif", "gif", "ppm", "jp2", "avif", "tga", "bmp", "JPE")
    picture = Image.new("RGB", (16, 16), (90, 20, 20))
    (tmp_path / "cat").mkdir()
    for end in ends:
        picture.save(tmp_path / "cat" / f"a.{end}", {"jfif": "JPEG", "JPE": "JPEG"}.get(end))
    (tmp_path / "cat" / "b.heic").write_bytes(b"\0\0\0\x18ftypheic")
    with pytest.warns(
        UserWarning, match=r"1 files are left out: 1 \.heic files, which are not read here; convert them"
    ):
        data = Folder(tmp_path, 16)
    batch = data.train().batch(range(len(ends)), range(len(ends)))["images"]
    assert ((batch.mean((2, 3)) - torch.tensor([90, 20, 20]) / 255).abs() < 0.02).all()
    with pytest.warns(UserWarning, match="1 files are left out"):
        assert len(open_samples(tmp_path, "image")) == len(ends)


def test_samples_with_two_pictures(tmp_path: Path) -> None:
    members = {}
    for number in range(4):
        members |= {
            f"{number}.cls": b"0",
            f"{number}.jpg": png(200),
            f"{number}.png": png(0),
            f"{number}.seg.png": png(9),
        }
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "train.tar").write_bytes(tar(members))
    message = (
        r"train\.tar: 4 of 4 samples hold several pictures, such as 0 \(jpg, png\); say which is meant: picture: jpg"
    )
    with pytest.raises(ValueError, match=message):
        ShardImages(str(tmp_path / "s"), size=8, index=tmp_path / "index")
    for picture, value in (("jpg", 200), ("PNG", 0), (".seg.png", 9)):
        data = ShardImages(str(tmp_path / "s"), size=8, index=tmp_path / "index", picture=picture)
        assert round(float(data.train().batch([0], [0])["images"].mean()) * 255) == value


def test_sounds_of_six_channels(tmp_path: Path) -> None:
    import soundfile

    (tmp_path / "s").mkdir()
    soundfile.write(tmp_path / "s" / "a.wav", np.random.default_rng(0).normal(size=(4000, 6)) * 0.1, 8000)
    sound(tmp_path / "s" / "b.wav")
    with pytest.warns(UserWarning, match=r"1 files of more than two channels are mixed down to one, such as a\.wav"):
        assert len(SoundFolder(tmp_path / "s", 8000, 0.25, held_out=0.0).train()) == 2
    with pytest.warns(
        UserWarning, match=r"1 of 2 files left out: .*a\.wav: got 6 channels, expected 1 or 2; mix it down"
    ):
        assert len(SoundFolder(tmp_path / "s", 8000, 0.25, channels=2, held_out=0.0, broken=0.6).train()) == 1


COMPOSED, APART = unicodedata.normalize("NFC", "é/b é.png"), unicodedata.normalize("NFD", "é/b é.png")


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        ("a.png,1\né/b é.png,0\nc;d.png,1\n", "utf-8"),
        ("./a.png,1\n.\\é\\b é.png,0\nc;d.png,1\n", "utf-8-sig"),
        ('Image;Label\na.png;1\né/b é.png;0\n"c;d.png";1\n', "utf-8"),
        ("FILENAME\tCLASS\na.png\t1\né/b é.png\t0\nc;d.png\t1\n", "utf-16"),
        ("id,Class,Path\n7,1,a.png\n8,0,é/b é.png\n9,1,c;d.png\n", "utf-8"),
    ],
)
@pytest.mark.parametrize("accents", ["NFC", "NFD"])
def test_label_files_spelt_otherwise(text: str, encoding: str, accents: str, tmp_path: Path) -> None:
    path = tmp_path / "labels.csv"
    path.write_text(unicodedata.normalize(accents, text), encoding=encoding)  # type: ignore[arg-type]
    for spelt in (COMPOSED, APART):
        assert read_labels(path, ["a.png", spelt, "c;d.png"]) == ([1, 0, 1], ("0", "1"))


def test_names_that_differ_in_accents_only(tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_text("a,1\n", encoding="utf-8")
    with pytest.raises(ValueError, match="are spelt the same but for accents; rename one of them"):
        read_labels(tmp_path / "labels.csv", [COMPOSED, APART])


def test_nothing_is_said_of_a_plain_folder(tmp_path: Path) -> None:
    image(tmp_path / "cat" / "a.png")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(Folder(tmp_path, 16, classes=False).train()) == 1


def test_a_folder_that_is_linked_from_nowhere_is_said(tmp_path: Path) -> None:
    Image.new("RGB", (16, 16)).save(tmp_path / "a.png")
    os.symlink(tmp_path / "gone", tmp_path / "more")
    with pytest.warns(UserWarning, match=r"1 files are left out: 1 links that lead nowhere \(more\)"):
        assert len(Folder(tmp_path, 16).train()) == 1
