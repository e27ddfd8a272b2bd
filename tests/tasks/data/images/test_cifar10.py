"""CIFAR-10 from each of its layouts, and never from pickles."""

import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from maskgen.tasks.data.images.cifar10 import Cifar10
from tests.tasks.data.images.cifar10_records import binary, records
from tests.tasks.data.images.shard_samples import png

REAL = Path(__file__).resolve().parents[5] / "shared" / "data"
NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def test_the_binary_version(tmp_path: Path) -> None:
    """A record is the label, then all of red, all of green, all of blue."""
    folder = binary(tmp_path / "cifar-10-batches-bin")
    data = Cifar10(folder, flip=False)
    assert (len(data.train()), len(data.test()), data.class_names) == (50, 20, NAMES)
    batch = data.train().batch([12], [0])
    row = np.frombuffer(records(10, 2), np.uint8).reshape(10, 3073)[2]
    assert torch.equal((batch["images"][0] * 255).round().byte(), torch.from_numpy(row[1:].reshape(3, 32, 32).copy()))
    assert batch["labels"].tolist() == [2]
    with tarfile.open(tmp_path / "cifar-10-binary.tar.gz", "w:gz") as archive:
        archive.add(folder, folder.name)
    for other in (tmp_path, tmp_path / "cifar-10-binary.tar.gz"):
        again = Cifar10(other, flip=False).train().batch([12], [0])
        assert torch.equal(again["images"], batch["images"])


def zips(folder: Path, size: int = 32) -> Path:
    folder.mkdir(exist_ok=True)
    for name, each in (("train", 3), ("test", 2)):
        with zipfile.ZipFile(folder / f"cifar10-{name}.zip", "w") as archive:
            for label, kind in enumerate(NAMES):
                for number in range(each):
                    archive.writestr(f"{kind}/{number:04d}.png", png(10 * label + number, size))
    return folder


def test_zips_of_pictures(tmp_path: Path) -> None:
    data = Cifar10(zips(tmp_path), flip=False)
    batch = data.train().batch(range(30), range(30))
    assert batch["labels"].tolist() == [label for label in range(10) for _ in range(3)]
    assert (batch["images"][:, 0, 0, 0] * 255).round().int().tolist() == [
        10 * n + i for n in range(10) for i in range(3)
    ]
    few = Cifar10(tmp_path, limit=1)
    assert few.train().batch(range(10), range(10))["labels"].tolist() == list(range(10))
    assert len(few.test()) == 10


def test_flips_and_shifts_depend_on_the_seed_alone(tmp_path: Path) -> None:
    folder = binary(tmp_path / "cifar-10-batches-bin")
    still = Cifar10(folder, flip=False).train().batch([4], [0])["images"]
    source = Cifar10(folder, max_shift=2).train()
    seen = source.batch([4] * 40, range(40))["images"]
    assert torch.equal(source.batch([3, 4], [0, 7])["images"][1], seen[7])
    middles = {image[:, 4:-4, 4:-4].numpy().tobytes() for image in seen}
    assert len(middles) > 20  # of 25 places, each in two directions
    moved = torch.nn.functional.pad(still, (2,) * 4, mode="replicate")[0]
    wanted = {
        view[:, 4:-4, 4:-4].contiguous().numpy().tobytes()
        for picture in (moved, torch.nn.functional.pad(still.flip(-1), (2,) * 4, mode="replicate")[0])
        for top in range(5)
        for left in range(5)
        for view in (picture[:, top : top + 32, left : left + 32],)
    }
    assert middles <= wanted


def test_what_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"root: got .*nowhere, expected cifar10-train\.zip"):
        Cifar10(tmp_path / "nowhere")
    pickles = tmp_path / "cifar-10-batches-py"
    pickles.mkdir()
    (pickles / "data_batch_1").write_bytes(b"\x80\x04.")
    for root in (pickles, tmp_path):
        with pytest.raises(ValueError, match="pickles, which can run any code when they are read; fetch the binary"):
            Cifar10(root)
    damaged = binary(tmp_path / "a" / "cifar-10-batches-bin")
    (damaged / "data_batch_3.bin").write_bytes(records(10, 3)[:-1])
    with pytest.raises(ValueError, match="expected whole records of 3073 bytes in each file; fetch it again"):
        Cifar10(damaged)
    (damaged / "data_batch_3.bin").write_bytes(b"\x63" + records(1, 3)[1:])
    with pytest.raises(ValueError, match="got a label 99, expected 0 to 9"):
        Cifar10(damaged)
    small = zips(tmp_path / "small", size=16)
    with pytest.raises(ValueError, match=r"airplane/0000\.png: got \(16, 16\) pixels, expected 32 x 32"):
        Cifar10(small)
    (small / "cifar10-train.zip").write_bytes(b"no archive")
    with pytest.raises(ValueError, match=r"cifar10-train\.zip: damaged \(File is not a zip file\)"):
        Cifar10(small)
    with pytest.raises(ValueError, match="got max_shift 32, limit 0"):
        Cifar10(small, max_shift=32)


@pytest.mark.skipif(not (REAL / "cifar10-test.zip").is_file(), reason="../shared/data is not here")
def test_the_real_names_are_read(tmp_path: Path) -> None:
    """A hundred real photographs; all 60,000 take too long for a test."""
    for name in ("train", "test"):
        with (
            zipfile.ZipFile(REAL / "cifar10-test.zip") as whole,
            zipfile.ZipFile(tmp_path / f"cifar10-{name}.zip", "w") as part,
        ):
            for entry in whole.namelist()[::100]:
                part.writestr(entry, whole.read(entry))
    data = Cifar10(tmp_path)
    batch = data.test().batch(range(100), range(100))
    assert torch.bincount(batch["labels"], minlength=10).tolist() == [10] * 10
    assert 0.3 < batch["images"].mean() < 0.6
    assert batch["images"].std() > 0.2
