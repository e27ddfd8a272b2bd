"""Images to train on: digits, shifts, and folders of files of any size and some that are broken."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from maskgen.data import TensorSource
from maskgen.tasks.data.broken import BrokenExamples, Tolerance
from maskgen.tasks.data.images.digits import Digits, Folder, ShiftedSource
from maskgen.tasks.data.images.folders import ImageFiles
from maskgen.tasks.data.images.sources import Crop, CropKind, PictureSource
from maskgen.tasks.media.images import to_tensor

SEEDS = list(range(40))


@pytest.fixture(scope="module")
def digits() -> Digits:
    return Digits(size=16)


def keys(source: TensorSource) -> set[bytes]:
    return {image.numpy().tobytes() for image in source.tensors["images"]}


def test_digits(digits: Digits) -> None:
    train, test = digits.train(), digits.test()
    assert (len(train), len(test)) == (1437, 360)
    assert isinstance(train, TensorSource)
    for source in (train, test):
        images, labels = source.tensors["images"], source.tensors["labels"]
        assert (images.shape[1:], images.dtype, labels.dtype) == ((3, 16, 16), torch.float32, torch.long)
        assert images.min() == 0
        assert images.max() == 1
        assert torch.equal(images[:, 0], images[:, 2])
        shares = torch.bincount(labels, minlength=10) / len(labels)
        assert len(shares) == 10
        assert shares.min() > 0.09
        assert shares.max() < 0.11
    assert len(keys(train)) + len(keys(test)) > 1700  # nearly all are different images
    assert keys(train).isdisjoint(keys(test))
    assert digits.class_names[7] == "seven"
    assert digits.size == (16, 16)


def test_digits_show_what_they_are_called(digits: Digits) -> None:
    """The mean zero is dark in the middle, the mean one is bright there."""
    train = digits.train().tensors
    middle = [train["images"][train["labels"] == label][:, 0, 6:10, 7:9].mean() for label in (0, 1)]
    assert middle[0] < 0.2
    assert middle[1] > 0.6


def test_digits_are_split_the_same_way_every_time(digits: Digits) -> None:
    torch.manual_seed(123)
    np.random.seed(123)
    again, larger = Digits(size=16), Digits(size=32)
    for name in ("images", "labels"):
        assert torch.equal(again.train().tensors[name], digits.train().tensors[name])
        assert torch.equal(again.test().tensors[name], digits.test().tensors[name])
    assert torch.equal(larger.test().tensors["labels"], digits.test().tensors["labels"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"size": 7}, "size: got 7, expected at least 8 pixels"),
        ({"size": 8, "max_shift": 8}, "max_shift: got 8, expected 0 <= max_shift < size = 8"),
        ({"max_shift": -1}, "max_shift: got -1"),
    ],
)
def test_digits_refuse(arguments: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Digits(**arguments)


def test_digits_without_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ImportError, match=r'pip install "maskgen\[demo\]"'):
        Digits()


def test_shifts_depend_on_the_seed_alone() -> None:
    still = TensorSource(images=torch.rand(4, 3, 6, 8), labels=torch.arange(4))
    moving = ShiftedSource(still, 2)
    assert len(moving) == 4
    together = moving.batch([1, 1, 3], [5, 6, 5])
    assert torch.equal(together["images"][2], moving.batch([3], [5])["images"][0])
    assert together["labels"].tolist() == [1, 1, 3]
    seen = [moving.batch([1], [seed])["images"][0] for seed in SEEDS]
    assert torch.equal(seen[3], moving.batch([1], [3])["images"][0])
    original = still.tensors["images"][1]
    shifts = {(dy, dx) for image in seen for dy in range(-2, 3) for dx in range(-2, 3) if _is(image, original, dy, dx)}
    assert len(shifts) > 12  # of 25
    assert max(max(abs(dy), abs(dx)) for dy, dx in shifts) == 2
    assert Digits(size=8, max_shift=1).train().batch([0], [0])["images"].shape == (1, 3, 8, 8)
    assert isinstance(Digits(size=8, max_shift=1).test(), TensorSource)


def _is(image: torch.Tensor, original: torch.Tensor, dy: int, dx: int) -> bool:
    """Whether the image is the original, moved, with its border drawn out."""
    rows = (torch.arange(6) + dy).clamp(0, 5)
    columns = (torch.arange(8) + dx).clamp(0, 7)
    return torch.equal(image, original[:, rows][:, :, columns])


def picture(path: Path, width: int = 12, height: int = 9, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(values).save(path)
    return path


def library(root: Path) -> Path:
    picture(root / "dog" / "deep" / "b.png", seed=1)
    picture(root / "cat" / "a.PNG", width=9, height=12, seed=2)
    picture(root / "cat" / "c.jpg", seed=3)
    (root / "cat" / "notes.txt").write_text("no image", encoding="utf-8")
    (root / ".hidden").mkdir()
    return root


def one_file(path: Path, size: tuple[int, int], crop: CropKind, *, flip: bool) -> PictureSource:
    broken = BrokenExamples(Tolerance(place="images", total=1, share=0.0))
    return PictureSource(ImageFiles([(path, 0)]), Crop(size=size, kind=crop, flip=flip), broken)


def named(source: PictureSource) -> list[tuple[str, int]]:
    """File name and label of each image."""
    files = source.pictures
    assert isinstance(files, ImageFiles)
    return [(Path(path).name, label) for path, label in zip(files.paths, files.labels, strict=True)]


def test_folder(tmp_path: Path) -> None:
    data = Folder(library(tmp_path), size=8)
    assert data.class_names == ("cat", "dog")
    source = data.train()
    assert named(source) == [("a.PNG", 0), ("c.jpg", 0), ("b.png", 1)]
    batch = source.batch([2, 0], [1, 2])
    assert (batch["images"].shape, batch["images"].dtype) == ((2, 3, 8, 8), torch.float32)
    assert batch["labels"].tolist() == [1, 0]
    assert 0 <= batch["images"].min() < batch["images"].max() <= 1
    assert data.test() is None
    assert len(source) == 3


def test_one_folder_is_one_class(tmp_path: Path) -> None:
    picture(tmp_path / "flowers" / "a.png")
    data = Folder(tmp_path / "flowers", size=8, test_root=tmp_path / "flowers")
    assert data.class_names == ("flowers",)
    assert len(data.train()) == len(data.test()) == 1


def test_crops_and_flips_depend_on_the_seed_alone(tmp_path: Path) -> None:
    path = picture(tmp_path / "a" / "a.png", width=24, height=8)
    source = one_file(path, (8, 8), "random", flip=True)
    seen = [source.batch([0], [seed])["images"][0] for seed in SEEDS]
    assert torch.equal(seen[5], source.batch([0], [5])["images"][0])
    assert torch.equal(seen[5], source.batch([0, 0], [4, 5])["images"][1])
    with Image.open(path) as opened:
        whole = to_tensor([opened.convert("RGB")])[0]
    places = set()
    for image in seen:
        for flipped in (False, True):
            for left in range(17):
                if torch.equal(image.flip(-1) if flipped else image, whole[..., left : left + 8]):
                    places.add((left, flipped))
    assert len({left for left, _ in places}) > 8  # of 17
    assert {flipped for _, flipped in places} == {False, True}
    kept = one_file(path, (8, 8), "random", flip=False)
    assert all(
        any(torch.equal(kept.batch([0], [seed])["images"][0], whole[..., x : x + 8]) for x in range(17))
        for seed in range(8)
    )


def test_held_out_images_are_cropped_in_the_middle(tmp_path: Path) -> None:
    path = picture(tmp_path / "a" / "a.png", width=24, height=8)
    with Image.open(path) as opened:
        whole = to_tensor([opened.convert("RGB")])[0]
    source = Folder(tmp_path, size=8, test_root=tmp_path).test()
    assert source is not None
    for seed in range(4):
        assert torch.equal(source.batch([0], [seed])["images"][0], whole[..., 8:16])


@pytest.mark.parametrize(("width", "height"), [(3, 40), (40, 3), (2, 2), (7, 8), (100, 61)])
@pytest.mark.parametrize("size", [(8, 8), (6, 10), (11, 5)])
def test_any_size_covers_the_crop(width: int, height: int, size: tuple[int, int], tmp_path: Path) -> None:
    path = picture(tmp_path / "a.png", width, height)
    for crop in ("centre", "random"):
        images = one_file(path, size, crop, flip=crop == "random").batch([0], [1])["images"]
        assert images.shape == (1, 3, *size)


def test_a_broken_file_is_named(tmp_path: Path) -> None:
    library(tmp_path)
    (tmp_path / "cat" / "broken.png").write_bytes(b"not a picture")
    source = Folder(tmp_path, size=8).train()
    message = (
        r"1 of 4 examples cannot be used, expected at most a share of 0.05 \(broken\): .*cat/broken\.png: got a file"
    )
    with pytest.raises(ValueError, match=message) as caught:
        source.batch(range(len(source)), range(len(source)))
    assert "\n" not in str(caught.value)


def test_folders_that_cannot_be_used(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"data folder: got .*nowhere, expected a folder of images"):
        Folder(tmp_path / "nowhere")
    picture(tmp_path / "file.png")
    with pytest.raises(FileNotFoundError, match=r"data folder: got .*file\.png, expected a folder"):
        Folder(tmp_path / "file.png")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"empty: no images found; expected .*\.png.* in one sub-folder a class"):
        Folder(tmp_path / "empty")
    library(tmp_path / "train")
    picture(tmp_path / "test" / "bird" / "a.png")
    with pytest.raises(ValueError, match=r"test: has classes \['bird'\] that the training folder lacks"):
        Folder(tmp_path / "train", test_root=tmp_path / "test")
    picture(tmp_path / "flat" / "a.png")
    with pytest.raises(ValueError, match="flat: got no sub-folders, expected one for each class"):
        Folder(tmp_path / "train", test_root=tmp_path / "flat")
    with pytest.raises(ValueError, match=r"test: has classes \['bird'\]"):
        Folder(tmp_path / "flat", test_root=tmp_path / "test")


def test_a_class_without_images_borrows_none(tmp_path: Path) -> None:
    """A class that the held-out folder lacks must not get the other classes' images."""
    library(tmp_path / "train")
    picture(tmp_path / "test" / "cat" / "a.png")
    with pytest.warns(UserWarning, match="test: no images for 1 classes: dog"):
        data = Folder(tmp_path / "train", size=8, test_root=tmp_path / "test")
    test = data.test()
    assert test is not None
    assert [label for _, label in named(test)] == [0]


def test_random_resized_crops(tmp_path: Path) -> None:
    """Parts of the picture of the wanted share, seen through a ramp: the range of values is the width of the part."""
    ramp = np.repeat(np.linspace(0, 255, 64).astype(np.uint8)[None, :, None], 64, axis=0).repeat(3, axis=2)
    (tmp_path / "a").mkdir()
    Image.fromarray(ramp).save(tmp_path / "a" / "ramp.png")
    source = Folder(tmp_path, size=16, crop="resized", min_scale=0.25, flip=False).train()
    images = source.batch([0] * 60, range(60))["images"]
    widths = images[:, 0, 8, -1] - images[:, 0, 8, 0]
    assert images.shape == (60, 3, 16, 16)
    assert widths.min() < 0.6 < 0.8 < widths.max()
    assert torch.equal(source.batch([0], [17])["images"][0], images[17])
    whole = Folder(tmp_path, size=16, crop="resized", min_scale=1.0).train().batch([0], [3])["images"]
    assert whole.max() - whole.min() > 0.9


def test_the_global_random_state_is_left_alone(tmp_path: Path) -> None:
    source = Folder(library(tmp_path), size=8).train()
    state = torch.get_rng_state()
    source.batch([0, 1], [0, 1])
    assert torch.equal(torch.get_rng_state(), state)


def test_label_files(tmp_path: Path) -> None:
    for number in range(4):
        picture(tmp_path / "train" / f"{number}.png", seed=number)
        picture(tmp_path / "test" / "deep" / f"{number}.png", seed=number)
    label_file, test_file, names = (tmp_path / name for name in ("train.csv", "test.tsv", "names.txt"))
    label_file.write_text("image,class\n0.png,zebra\n1.png,ant\n2.png,ant\n3.png,zebra\n", encoding="utf-8")
    test_file.write_text("".join(f"deep/{n}.png\tzebra\n" for n in range(4)), encoding="utf-8")
    names.write_text("Ant\nZebra\n", encoding="utf-8")
    roots = {"root": tmp_path / "train", "test_root": tmp_path / "test"}
    data = Folder(**roots, size=8, label_file=label_file, test_label_file=test_file)
    test = data.test()
    assert data.class_names == ("ant", "zebra")
    assert test is not None
    assert data.train().batch(range(4), range(4))["labels"].tolist() == [1, 0, 0, 1]
    assert test.batch([0, 3], [0, 0])["labels"].tolist() == [1, 1]
    named = Folder(**roots, size=8, label_file=label_file, test_label_file=test_file, names=str(names))
    assert named.class_names == ("Ant", "Zebra")
    label_file.write_text("0.png 1\n1.png 0\n2.png 0\n3.png 1\n", encoding="utf-8")
    assert Folder(tmp_path / "train", size=8, label_file=label_file).class_names == ("0", "1")
    with pytest.raises(ValueError, match="names: got 1000 from imagenet, expected 2"):
        Folder(tmp_path / "train", size=8, label_file=label_file, names="imagenet")
    with pytest.raises(ValueError, match="expected both or none with a test_root"):
        Folder(**roots, label_file=label_file)
    with pytest.raises(ValueError, match="label_file: got one with classes: false"):
        Folder(tmp_path / "train", label_file=label_file, classes=False)
    with pytest.raises(FileNotFoundError, match=r"label_file: got .*nowhere"):
        Folder(tmp_path / "train", label_file=tmp_path / "nowhere")
    test_file.write_text("".join(f"deep/{n}.png\tbee\n" for n in range(4)), encoding="utf-8")
    label_file.write_text("0.png a\n1.png b\n2.png b\n3.png a\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"has classes \['bee'\] that the training images lack"):
        Folder(**roots, label_file=label_file, test_label_file=test_file)


@pytest.mark.filterwarnings("ignore:.* skipped so far")
def test_the_next_picture_stands_in_for_a_broken_one(tmp_path: Path) -> None:
    library(tmp_path)
    (tmp_path / "cat" / "b.png").write_bytes(b"")
    (tmp_path / "dog" / "z.jpg").write_text("no picture", encoding="utf-8")
    source = Folder(tmp_path, size=8, broken=0.5).train()
    names = [name for name, _ in named(source)]
    assert names == ["a.PNG", "b.png", "c.jpg", "b.png", "z.jpg"]
    batch = source.batch([1, 4], [5, 6])
    whole = source.batch([2, 0], [5, 6])
    assert torch.equal(batch["images"], whole["images"])
    assert batch["labels"].tolist() == [0, 0]
    for broken in (tmp_path / "cat").iterdir():
        broken.write_bytes(b"")
    (tmp_path / "dog" / "deep" / "b.png").write_bytes(b"")
    with pytest.raises(ValueError, match="examples cannot be used, expected at most a share of 0.99"):
        Folder(tmp_path, size=8, broken=0.99).train().batch([0], [0])
