"""Samples in folders, archives, .npz files, generated sets and data sets; broken ones, mixed sizes, several processes."""

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from maskgen.data import TensorSource
from maskgen.tasks.data.base import ImageData
from maskgen.tasks.data.broken import Broken
from maskgen.tasks.data.images.cifar10 import PixelSource
from maskgen.tasks.data.images.digits import Digits
from maskgen.tasks.data.images.folders import Folder
from maskgen.tasks.data.video.moving_digits import MovingDigits
from maskgen.tasks.evaluation.features.base import LogMelFeatures, PixelFeatures
from maskgen.tasks.evaluation.features.extraction import Extraction, FeatureSet, extract
from maskgen.tasks.evaluation.sets.arrays import open_array, write_batch
from maskgen.tasks.evaluation.sets.base import DataSamples, SampleSet, Subset, open_samples
from maskgen.tasks.evaluation.sets.labelled import SampleImages
from maskgen.tasks.evaluation.sets.processes import Processes
from maskgen.tasks.media.audio.files import save_sound
from maskgen.tasks.media.video.files import save_video
from tests.tasks.evaluation.support import arrays, pictures, single, together


class Memory(ImageData):
    """Augmented pixels in memory."""

    size, class_names = (8, 8), ("left", "right")

    def train(self) -> PixelSource:
        pixels = torch.from_numpy(arrays(6, 0)).permute(0, 3, 1, 2).contiguous()
        return PixelSource(pixels, torch.arange(6) % 2, flip=True, max_shift=2)

    def test(self) -> None:
        return None


def read_all(samples: SampleSet) -> Tensor:
    found = samples.read(0, len(samples))
    assert all(isinstance(sample, Tensor) for sample in found), found
    return torch.stack(found)  # type: ignore[arg-type]


def channels_first(batch: np.ndarray) -> Tensor:
    return torch.from_numpy(batch).movedim(-1, 1)


def archive(folder: Path, path: Path) -> Path:
    with zipfile.ZipFile(path, "w") as found:
        for file in sorted(folder.rglob("*.png")):
            found.write(file, file.relative_to(folder))
    return path


def features(samples: SampleSet, folder: Path, count: int = 1, **settings: object) -> FeatureSet:
    def work(state: object) -> FeatureSet | None:
        team = Processes(state, folder / "parts")  # type: ignore[arg-type]
        how = Extraction(extractor=PixelFeatures(2), resize="tf1-bilinear", team=team, **settings)  # type: ignore[arg-type]
        found = extract(samples, how, "samples")
        team.close()
        return found

    first, *others = together(count, work)
    assert others == [None] * (count - 1)
    assert not (folder / "parts").exists()
    return first


def test_folder_and_archive(tmp_path: Path) -> None:
    folder = pictures(tmp_path / "set", 7, 0)
    order = [0, 2, 4, 6, 1, 3, 5]  # left before right
    for place in (folder, archive(folder, tmp_path / "set.zip")):
        samples = open_samples(place, "image")
        assert torch.equal(read_all(samples), channels_first(arrays(7, 0)[order]))
        assert samples.class_names == ("left", "right")
        assert samples.labels == [0, 0, 0, 0, 1, 1, 1]
        before = samples.digest()
        assert before == open_samples(place, "image").digest()
    Image.new("RGB", (8, 8), "red").save(folder / "left" / "0002.png")
    assert open_samples(folder, "image").digest() != open_samples(pictures(tmp_path / "same", 7, 0), "image").digest()
    (folder / "loose.png").write_bytes((folder / "left" / "0002.png").read_bytes())
    (folder / ".hidden.png").write_bytes(b"")
    loose = open_samples(folder, "image")
    assert (len(loose), loose.labels) == (8, None)


def test_batches(tmp_path: Path) -> None:
    batch = arrays(9, 0)
    write_batch(tmp_path / "ours.npz", batch.shape, iter([batch[:4], batch[4:]]), [0, 1] * 4 + [0])
    np.savez(tmp_path / "adm.npz", batch, np.arange(9))
    np.savez_compressed(tmp_path / "small.npz", arr_0=batch)
    for name in ("ours", "adm", "small"):
        samples = open_samples(tmp_path / f"{name}.npz", "image")
        assert torch.equal(read_all(samples), channels_first(batch))
    with np.load(tmp_path / "ours.npz", allow_pickle=False) as found:
        np.testing.assert_array_equal(found["arr_0"], batch)
        assert found["arr_1"].tolist() == [0, 1] * 4 + [0]
    assert isinstance(open_array(tmp_path / "ours.npz", "arr_0"), np.memmap)
    assert open_samples(tmp_path / "adm.npz", "image").labels == list(range(9))
    assert open_samples(tmp_path / "small.npz", "image").labels is None
    clips = np.stack([arrays(20, seed) for seed in range(3)])  # [3, T, H, W, 3]
    np.savez(tmp_path / "clips.npz", clips)
    video = open_samples(tmp_path / "clips.npz", "video")
    assert read_all(video).shape == (3, 3, 16, 8, 8)
    assert torch.equal(read_all(video)[1, :, 5], channels_first(clips[1])[5])
    with pytest.raises(ValueError, match=r"adm\.npz: holds samples of image, but the features are of video"):
        open_samples(tmp_path / "adm.npz", "video")


def test_what_a_hash_of_samples_depends_on(tmp_path: Path) -> None:
    """How many frames are taken, and the labels: references and classifiers of others must not be reused."""
    clips = np.stack([arrays(20, seed) for seed in range(3)])
    np.savez(tmp_path / "clips.npz", clips)
    for number in range(2):
        save_video(clips[number], tmp_path / "videos" / f"{number}.mp4", 8)
    for name in ("clips.npz", "videos"):
        first, second, again = (open_samples(tmp_path / name, "video", frames).digest() for frames in (16, 8, 16))
        assert first == again != second
    np.savez(tmp_path / "one.npz", arrays(4, 0), np.array([0, 1, 0, 1]))
    np.savez(tmp_path / "two.npz", arrays(4, 0), np.array([1, 0, 1, 0]))
    assert open_samples(tmp_path / "one.npz", "image").digest() != open_samples(tmp_path / "two.npz", "image").digest()


def test_subsets(tmp_path: Path) -> None:
    samples = open_samples(pictures(tmp_path / "set", 7, 0), "image")
    some = Subset(samples, [5, 0, 2])
    assert (len(some), some.labels, some.class_names) == (3, [1, 0, 0], ("left", "right"))
    assert torch.equal(read_all(some), read_all(samples)[[5, 0, 2]])
    assert torch.equal(torch.stack(some.read(1, 9)), read_all(samples)[[0, 2]])  # type: ignore[arg-type]
    assert some.digest() == Subset(samples, [5, 0, 2]).digest() != Subset(samples, [5, 2, 0]).digest()
    save_sound(torch.zeros(1, 50), tmp_path / "sounds" / "a.wav", 1000)
    save_sound(torch.zeros(1, 50), tmp_path / "sounds" / "b.wav", 2000)
    sounds = Subset(open_samples(tmp_path / "sounds", "audio"), [1])
    sounds.read(0, 1)
    assert sounds.sample_rate(0) == 2000


def test_batches_that_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    np.savez(path, arr_0=arrays(2, 0).astype(np.float32))
    with pytest.raises(ValueError, match=r"got arr_0 float32 \[2, 8, 8, 3\], expected arr_0 uint8"):
        open_samples(path, "image")
    np.savez(path, images=arrays(2, 0))
    with pytest.raises(ValueError, match="got no arr_0, expected arr_0 uint8"):
        open_samples(path, "image")
    np.savez(path, arr_0=np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match="arr_0 cannot be read .*only a pickle could hold"):
        open_samples(path, "image")
    path.write_bytes(b"no archive")
    with pytest.raises(ValueError, match=r"truncated or no \.npz"):
        open_samples(path, "image")
    with pytest.raises(FileNotFoundError, match=r"nowhere\.npz: no such file"):
        open_samples(tmp_path / "nowhere.npz", "image")
    with pytest.raises(
        FileNotFoundError, match=r"nowhere: no such file or folder, expected a folder or an archive of samples"
    ):
        open_samples(tmp_path / "nowhere", "image")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty: no image files found; expected names that end in"):
        open_samples(tmp_path / "empty", "image")
    with pytest.raises(ValueError, match=r"expected uint8 \[3, 8, 8, 3\]"):
        write_batch(tmp_path / "y.npz", (3, 8, 8, 3), iter([arrays(2, 0, side=4)]))
    with pytest.raises(ValueError, match="batch: got 2 samples, expected 3"):
        write_batch(tmp_path / "y.npz", (3, 8, 8, 3), iter([arrays(2, 0)]))
    assert not (tmp_path / "y.npz").exists()


def test_generated_sets(tmp_path: Path) -> None:
    pictures(tmp_path, 4, 0)
    items = [{"file": "right/0001.png", "label": 7}, {"file": "left/0000.png", "label": 0}]
    place = tmp_path / "manifest.json"
    place.write_text(json.dumps({"items": items, "complete": True}), encoding="utf-8")
    samples = open_samples(tmp_path, "image")
    assert (len(samples), samples.labels) == (2, [7, 0])
    assert torch.equal(read_all(samples), channels_first(arrays(4, 0)[[1, 0]]))
    place.write_text(json.dumps({"items": items, "complete": False}), encoding="utf-8")
    with pytest.raises(ValueError, match="this set is not finished; run the command that makes it again"):
        open_samples(tmp_path, "image")
    place.write_text(json.dumps({"items": [], "complete": True}), encoding="utf-8")
    with pytest.raises(ValueError, match="damaged, or no list of samples"):
        open_samples(tmp_path, "image")
    place.write_text(json.dumps({"items": items, "modality": "audio", "complete": True}), encoding="utf-8")
    with pytest.raises(ValueError, match="holds samples of audio, but the features are of image"):
        open_samples(tmp_path, "image")


def test_clips_and_sounds(tmp_path: Path) -> None:
    clip = arrays(5, 0, side=16)
    Image.fromarray(np.concatenate(list(clip))).save(tmp_path / "strip.png")
    manifest = {"modality": "video", "frames": 5, "items": [{"file": "strip.png"}], "complete": True}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    (strip,) = open_samples(tmp_path, "video", frames=4).read(0, 1)
    assert torch.equal(strip, torch.from_numpy(clip).movedim(-1, 0)[:, :4])
    (tmp_path / "videos").mkdir()
    save_video(clip, tmp_path / "videos" / "a.mp4", 8)
    (found,) = open_samples(tmp_path / "videos", "video").read(0, 1)
    assert isinstance(found, Tensor)
    assert found.shape == (3, 5, 16, 16)
    assert (found.float() - torch.from_numpy(clip).movedim(-1, 0).float()).abs().mean() < 30  # H.264 loses detail
    sound = torch.sin(torch.arange(900) / 20)[None] * 0.5
    save_sound(sound, tmp_path / "videos" / "b.wav", 8000)
    with pytest.warns(UserWarning, match=r"1 files are left out: 1 video files \(a\.mp4\)"):
        samples = open_samples(tmp_path / "videos", "audio")
    (wave,) = samples.read(0, 1)
    assert isinstance(wave, Tensor)
    torch.testing.assert_close(wave, sound, rtol=0, atol=1e-4)
    assert samples.sample_rate(0) == 8000
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as packed:
        packed.write(tmp_path / "videos" / "a.mp4", "a.mp4")
    (reason,) = open_samples(tmp_path / "a.zip", "video").read(0, 1)
    assert "got an archive, expected a folder of video files" in str(reason)


def test_data_sets(tmp_path: Path) -> None:
    shifted = DataSamples(Digits(size=8, max_shift=2), "train")
    plain = Digits(size=8).train()
    assert isinstance(plain, TensorSource)
    assert torch.equal(read_all(shifted), (plain.tensors["images"] * 255).round().to(torch.uint8))
    assert shifted.labels == plain.tensors["labels"].tolist()
    assert shifted.name == "Digits (train)"
    assert shifted.digest() != DataSamples(Digits(size=8), "test").digest()
    folder = pictures(tmp_path, 6, 0)
    found = DataSamples(Folder(folder, size=8), "train")  # flips and crops in training, not here
    assert torch.equal(read_all(found), read_all(open_samples(folder, "image")))
    with pytest.raises(ValueError, match="Folder has no held-out examples"):
        DataSamples(Folder(folder, size=8), "test")
    whole = found.digest()
    assert (
        whole
        == DataSamples(Folder(folder, size=8), "train").digest()
        != DataSamples(Folder(folder, 6), "train").digest()
    )
    (folder / "right" / "0003.png").write_bytes(b"x")  # training puts another in its place
    broken = DataSamples(Folder(folder, size=8, broken=0.5), "train")
    assert [isinstance(sample, Broken) for sample in broken.read(0, 6)] == [False] * 4 + [True, False]
    assert broken.labels == [0, 0, 0, 1, 1, 1]
    assert broken.digest() != whole
    cifar = Memory()
    assert torch.equal(read_all(DataSamples(cifar, "train")), cifar.train().pixels)  # moved and mirrored in training
    clips = DataSamples(MovingDigits(frames=6, size=16, digit_size=8), "test", frames=4)
    assert clips.read(3, 4)[0].shape == (3, 4, 16, 16)  # type: ignore[union-attr]


@pytest.mark.parametrize("count", [1, 2, 4])
def test_any_number_of_processes(count: int, tmp_path: Path) -> None:
    """The same rows in the same order, to the last bit."""
    samples = open_samples(pictures(tmp_path / "set", 13, 0), "image")
    found, expected = (features(samples, tmp_path, number, batch_size=2) for number in (count, 1))
    assert torch.equal(found.features, expected.features)
    assert torch.equal(found.gaussian.covariance, expected.gaussian.covariance)
    assert found.owners.tolist() == list(range(13))
    assert (found.samples, found.shape) == (13, (3, 8, 8))


@pytest.mark.parametrize("count", [1, 3])
def test_more_than_are_kept(count: int, tmp_path: Path) -> None:
    """Statistics of all, vectors of evenly spaced ones."""
    samples = open_samples(pictures(tmp_path / "set", 20, 0), "image")
    whole = features(samples, tmp_path, batch_size=3)
    found = features(samples, tmp_path, count, batch_size=3, most=5)
    assert found.owners.tolist() == [0, 4, 8, 12, 16]
    assert torch.equal(found.features, whole.features[found.owners])
    torch.testing.assert_close(found.gaussian.covariance, whole.gaussian.covariance, rtol=1e-10, atol=1e-14)
    assert found.gaussian.count == 20


@pytest.mark.parametrize("count", [1, 3])
def test_broken_pictures_are_counted(count: int, tmp_path: Path) -> None:
    folder = pictures(tmp_path / "set", 20, 0)
    whole = folder / "left" / "0004.png"
    whole.write_bytes(whole.read_bytes()[:60])
    (folder / "right" / "0003.png").write_text("no picture", encoding="utf-8")
    found = features(open_samples(folder, "image"), tmp_path, count, batch_size=2, broken=0.1)
    assert found.samples == 18
    assert list(found.skipped) == [2, 11]
    assert all("no picture, or a damaged one" in reason for reason in found.skipped.values())
    assert found.owners.tolist() == [number for number in range(20) if number not in (2, 11)]
    (folder / "right" / "0005.png").write_bytes(b"")
    with pytest.raises(ValueError, match=r"3 of 20 samples cannot be read, expected at most a share of 0\.1"):
        features(open_samples(folder, "image"), tmp_path, count, batch_size=2, broken=0.1)


@pytest.mark.parametrize("count", [1, 2])
def test_mixed_sizes(count: int, tmp_path: Path) -> None:
    folder = pictures(tmp_path / "set", 6, 0)
    Image.new("RGB", (12, 10)).save(folder / "left" / "0004.png")
    with pytest.raises(ValueError, match=r"samples of different sizes: .*\[10, 12\] \(number 2\).*resize them first"):
        features(open_samples(folder, "image"), tmp_path, count, batch_size=2)


def test_other_modality_and_too_few(tmp_path: Path) -> None:
    samples = open_samples(pictures(tmp_path / "set", 1, 0), "image")
    with pytest.raises(ValueError, match=r"got 1 sample\(s\), which have no covariance"):
        features(samples, tmp_path)
    how = Extraction(extractor=LogMelFeatures(), resize="tf1-bilinear", team=Processes(single(), tmp_path))
    with pytest.raises(ValueError, match=r"got log-mel-64.* for audio, but .*set holds samples of image"):
        extract(samples, how, "x")


def test_sounds_of_any_length(tmp_path: Path) -> None:
    for number, seconds in enumerate((0.3, 2.0, 1.0)):
        wave = 0.1 * torch.randn(2, round(seconds * 8000), generator=torch.Generator().manual_seed(number))
        save_sound(wave, tmp_path / f"{number}.wav", 8000)
    extractor, team = LogMelFeatures(8000, bands=8, window=0.5), Processes(single(), tmp_path / "parts")
    how = Extraction(extractor=extractor, resize="tf1-bilinear", team=team)
    found = extract(open_samples(tmp_path, "audio"), how, "sounds")
    assert found is not None
    assert found.owners.tolist() == [0, 1, 1, 1, 1, 2, 2]
    assert (found.samples, found.gaussian.count, found.shape) == (3, 7, ())


def test_training_data(tmp_path: Path) -> None:
    train, test = pictures(tmp_path / "train", 8, 0), pictures(tmp_path / "test", 4, 1)
    data = SampleImages(train, test)
    assert (data.class_names, data.size, len(data.train())) == (("left", "right"), (8, 8), 8)
    batch = data.train().batch([1, 5], [0, 0])
    assert torch.equal((batch["images"] * 255).round().byte(), channels_first(arrays(8, 0)[[2, 3]]))
    assert batch["labels"].tolist() == [0, 1]
    flipped = SampleImages(train, flip=True).train().batch([0] * 20, range(20))["images"]
    assert 0 < sum(torch.equal(image, flipped[0]) for image in flipped) < 20
    np.savez(tmp_path / "batch.npz", arrays(4, 0), np.array([0, 1, 0, 1]))
    numbered = SampleImages(tmp_path / "batch.npz", num_classes=5)
    assert numbered.class_names == ("0", "1", "2", "3", "4")
    (test / "left").rename(test / "up")
    with pytest.raises(ValueError, match="classes: .*test has up, which .*train lacks \\(it has left, right\\)"):
        SampleImages(train, test)
    with pytest.raises(ValueError, match="got images without labels; expected one sub-folder a class"):
        SampleImages(train / "left")
