"""Folders and archives of sound: which files, which excerpts, what happens to broken ones."""

import json
import pickle
import warnings
import zipfile
from pathlib import Path

import pytest
import torch
from torch import Tensor

from maskgen.data import training_batches
from maskgen.tasks.data.audio.folders import SoundFolder
from maskgen.tasks.data.file_sets import FileSource
from maskgen.tasks.media.audio.features import loudness, normalize_loudness
from maskgen.tasks.media.audio.files import load_sound, resample, save_sound

RATE = 8000
DIGITS = Path(__file__).resolve().parents[5] / "shared" / "data" / "free-spoken-digits.zip"


def noise(samples: int = RATE, channels: int = 1, seed: int = 0) -> Tensor:
    return torch.randn(channels, samples, generator=torch.Generator().manual_seed(seed)) * 0.1


def fill(root: Path, count: int = 20, samples: int = 2 * RATE, prefix: str = "") -> Path:
    root.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        save_sound(noise(samples, seed=number), root / f"{prefix}{number:02}.wav", RATE)
    return root


def break_inside(path: Path) -> None:
    """A FLAC file that opens and then turns out damaged."""
    content = bytearray(path.read_bytes())
    content[len(content) // 3 :] = bytes(len(content) - len(content) // 3)
    path.write_bytes(content)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return fill(tmp_path / "sounds")


def test_examples_are_what_the_settings_say(root: Path) -> None:
    data = SoundFolder(root, 16_000, 0.5, channels=2, held_out=0.2)
    source = data.train()
    assert (data.size, data.sample_rate, data.channels, data.key, data.modality) == (
        (8000,),
        16_000,
        2,
        "audio",
        "audio",
    )
    assert data.class_names == ()
    batch = source.batch(range(len(source)), range(len(source)))
    assert set(batch) == {"audio"}
    assert batch["audio"].shape == (len(source), 2, 8000)
    assert batch["audio"].dtype == torch.float32
    assert batch["audio"].abs().max() <= 1
    for waveform in batch["audio"]:
        assert loudness(waveform, 16_000) == pytest.approx(-24, abs=0.01)


def test_an_excerpt_is_a_part_of_the_file(root: Path) -> None:
    source = SoundFolder(root, RATE, 0.25, loudness=None, held_out=0.0).train()
    starts = set()
    for seed in range(8):
        audio = source.batch([3], [seed])["audio"][0, 0]
        whole = load_sound(root / "03.wav")[0][0]
        found = [start for start in torch.nonzero(whole == audio[0]).flatten().tolist()
                 if torch.equal(whole[start : start + 2000], audio)]  # fmt: skip
        assert len(found) == 1
        starts.update(found)
    assert len(starts) == 8


def test_seed_and_file_alone_decide(root: Path) -> None:
    source = SoundFolder(root, RATE, 0.25).train()
    together = source.batch([0, 5, 2, 5], [7, 8, 9, 10])["audio"]
    alone = [source.batch([index], [seed])["audio"][0] for index, seed in ((0, 7), (5, 8), (2, 9), (5, 10))]
    assert torch.equal(together, torch.stack(alone))
    assert not torch.equal(together[1], together[3])
    again = pickle.loads(pickle.dumps(SoundFolder(root, RATE, 0.25))).train()
    assert torch.equal(again.batch([5], [8])["audio"][0], together[1])


def test_excerpts_are_salient(tmp_path: Path) -> None:
    """A second of sound in ten of silence: nearly always found, never found by one blind draw in ten."""
    sound = torch.cat([torch.zeros(1, 5 * RATE), noise(2 * RATE), torch.zeros(1, 5 * RATE)], 1)
    (tmp_path / "s").mkdir()
    save_sound(sound, tmp_path / "s" / "a.wav", RATE)

    def heard(cutoff: float) -> int:
        source = SoundFolder(tmp_path / "s", RATE, 0.5, loudness=None, cutoff=cutoff, held_out=0.0).train()
        audio = source.batch([0] * 40, range(40))["audio"]
        return sum(loudness(waveform, RATE) > -30 for waveform in audio)

    assert heard(-100) < 15
    assert heard(-30) > 25
    # A cutoff that nothing reaches: the loudest of the eight.
    assert heard(0) >= heard(-30)


def test_short_files_are_followed_by_silence(tmp_path: Path) -> None:
    fill(tmp_path / "s", 1, samples=1000)
    audio = SoundFolder(tmp_path / "s", RATE, 0.5, held_out=0.0).train().batch([0], [0])["audio"][0]
    expected = normalize_loudness(load_sound(tmp_path / "s" / "00.wav")[0], RATE, -24.0)
    assert torch.equal(audio[:, :1000], expected)
    assert not audio[:, 1000:].any()
    audio = SoundFolder(tmp_path / "s", 16_000, 0.5, held_out=0.0).train().batch([0], [0])["audio"][0]
    expected = normalize_loudness(resample(load_sound(tmp_path / "s" / "00.wav")[0], RATE, 16_000), 16_000, -24.0)
    assert torch.equal(audio[:, :2000], expected)


def test_peaks_stay_within_one(tmp_path: Path) -> None:
    (tmp_path / "s").mkdir()
    save_sound(noise() * 30, tmp_path / "s" / "a.wav", RATE, bits=32)
    for level in (None, -1.0):
        audio = SoundFolder(tmp_path / "s", RATE, 0.5, loudness=level, held_out=0.0).train().batch([0], [0])["audio"]
        assert float(audio.abs().max()) == 1


def names(source: FileSource | None) -> set[str]:
    return set() if source is None else set(source.names)


def test_the_split_shares_no_file_and_survives_new_files(root: Path) -> None:
    before = SoundFolder(root, RATE, 0.25, held_out=0.3)
    assert names(before.train()).isdisjoint(names(before.test()))
    assert len(names(before.train()) | names(before.test())) == 20
    assert 1 <= len(names(before.test())) <= 12
    fill(root / "more", 20, samples=100, prefix="new")
    after = SoundFolder(root, RATE, 0.25, held_out=0.3)
    assert names(before.train()) < names(after.train())
    assert names(before.test()) < names(after.test())
    assert names(after.train()).isdisjoint(names(after.test()))
    assert SoundFolder(root, RATE, 0.25, held_out=0.0).test() is None


def test_held_out_excerpts_are_fixed(root: Path) -> None:
    test = SoundFolder(root, RATE, 0.25, held_out=0.3).test()
    assert test is not None
    assert torch.equal(test.batch([0, 1], [1, 2])["audio"], test.batch([0, 1], [3, 4])["audio"])


def test_folders_as_classes(tmp_path: Path) -> None:
    for name in ("violin", "cello"):
        fill(tmp_path / "s" / name / "deeper", 3)
    data = SoundFolder(tmp_path / "s", RATE, 0.25, held_out=0.0, labels=True)
    assert data.class_names == ("cello", "violin")
    batch = data.train().batch(range(6), range(6))
    assert batch["labels"].tolist() == [0, 0, 0, 1, 1, 1]
    assert batch["labels"].dtype == torch.long
    assert "labels" not in SoundFolder(tmp_path / "s", RATE, 0.25, held_out=0.0).train().batch([0], [0])
    fill(tmp_path / "s", 1)
    with pytest.raises(ValueError, match=r"00\.wav outside of any folder"):
        SoundFolder(tmp_path / "s", RATE, 0.25, labels=True)


def test_files_that_do_not_open_are_left_out_and_named(root: Path) -> None:
    (root / "03.wav").write_text("no sound at all")
    (root / "04.wav").write_bytes(b"")
    (root / "notes.txt").write_text("not asked for")
    (root / ".hidden.wav").write_text("neither")
    with pytest.warns(UserWarning, match=r"2 of 20 files left out: .*03\.wav: no sound file.*04\.wav: got an empty"):
        data = SoundFolder(root, RATE, 0.25, held_out=0.0)
    assert [name for name, _ in data.skipped] == ["03.wav", "04.wav"]
    assert len(data.train()) == 18
    with pytest.raises(ValueError, match=r"2 of 20 files cannot be used, expected at most a share of 0\.05"):
        SoundFolder(root, RATE, 0.25, broken=0.05)


def test_files_damaged_inside_are_replaced(root: Path) -> None:
    for path in sorted(root.iterdir()):
        save_sound(load_sound(path)[0], path.with_suffix(".flac"), RATE)
        path.unlink()
    break_inside(root / "07.flac")
    data = SoundFolder(root, RATE, 2.0, held_out=0.0)
    source = data.train()
    assert len(source) == 20
    assert data.skipped == []
    with pytest.warns(UserWarning, match=r"1 skipped so far: .*07\.flac: damaged"):
        first = source.batch([7], [11])["audio"]
    assert [name for name, _ in data.skipped] == ["07.flac"]
    with warnings.catch_warnings():  # said once
        warnings.simplefilter("error")
        assert torch.equal(source.batch([6, 7], [1, 11])["audio"][1:], first)
    others = torch.cat([source.batch([index], [11])["audio"] for index in range(20) if index != 7])
    assert any(torch.equal(other, first[0]) for other in others)
    for number in range(4):
        break_inside(root / f"{number:02}.flac")
    data.log_skipped(root / "run" / "skipped.jsonl")
    with pytest.raises(ValueError, match="5 of 20 files cannot be used"):
        source.batch(range(4), range(4))
    lines = (root / "run" / "skipped.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["name"] for line in lines] == [name for name, _ in data.skipped]
    assert len(lines) == 5  # the one from before there was a file among them


def test_a_half_of_damaged_files_ends(tmp_path: Path) -> None:
    fill(tmp_path / "s", 20)
    save_sound(noise(2 * RATE), tmp_path / "s" / "z.flac", RATE)
    data = SoundFolder(tmp_path / "s", RATE, 2.0, held_out=0.0)
    source = FileSource(data, ["z.flac"], fixed=True)
    break_inside(tmp_path / "s" / "z.flac")
    with pytest.warns(UserWarning, match="1 skipped"), pytest.raises(ValueError, match="all 1 files of this half"):
        source.batch([0], [0])


def test_an_archive_is_a_folder(root: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "sounds.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for path in root.iterdir():
            archive.write(path, path.name)
        archive.writestr("__MACOSX/00.wav", "resource fork")
    packed, loose = SoundFolder(tmp_path / "sounds.zip", RATE, 0.25), SoundFolder(root, RATE, 0.25)
    assert packed.train().names == loose.train().names
    assert torch.equal(
        packed.train().batch(range(5), range(5))["audio"], loose.train().batch(range(5), range(5))["audio"]
    )


def test_loader_processes_see_the_same_archive(root: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "sounds.zip", "w") as archive:
        for path in root.iterdir():
            archive.write(path, path.name)
    source = SoundFolder(tmp_path / "sounds.zip", RATE, 0.25).train()
    one, two = (
        [batch["audio"] for batch in training_batches(source, batch_size=4, seed=0, stop=4, workers=workers)]
        for workers in (0, 2)
    )
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


def test_damage_inside_an_archive_is_named(root: Path, tmp_path: Path) -> None:
    path = tmp_path / "sounds.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(root.iterdir()):
            archive.write(file, file.name)
        archive.writestr("empty.wav", b"")
    content = bytearray(path.read_bytes())
    content[5000:5010] = b"0123456789"  # inside 00.wav, whose checksum no longer fits
    path.write_bytes(content)
    with pytest.warns(UserWarning, match=r"2 of 21 .*sounds\.zip/00\.wav: damaged.*empty\.wav: got an empty file"):
        SoundFolder(path, RATE, 0.25)


def test_what_is_refused(root: Path, tmp_path: Path) -> None:
    (tmp_path / "nothing").mkdir()
    (tmp_path / "text.zip").write_text("no archive")
    with pytest.raises(
        FileNotFoundError, match="no such file or folder, expected a folder or an archive of sound files"
    ):
        SoundFolder(tmp_path / "missing", RATE, 1.0)
    for place, message in (("nothing", "no sound files found"), ("text.zip", "expected a folder or a zip archive")):
        with pytest.raises(ValueError, match=message):
            SoundFolder(tmp_path / place, RATE, 1.0)
    for settings in ({"seconds": 0.0}, {"seconds": float("nan")}, {"channels": 3}, {"held_out": 1.0}, {"broken": -0.1}):
        with pytest.raises(ValueError, match="SoundFolder: got|held_out, broken: got"):
            SoundFolder(**{"root": root, "sample_rate": RATE, "seconds": 1.0, **settings})
    fill(tmp_path / "one", 1)
    with pytest.raises(ValueError, match="all 1 files are held out"):
        SoundFolder(tmp_path / "one", RATE, 1.0, held_out=0.999999)


if DIGITS.is_file():

    def test_spoken_digits() -> None:
        data = SoundFolder(DIGITS, RATE, 0.5, labels=True)
        assert data.class_names == tuple("0123456789")
        test = data.test()
        assert test is not None
        assert len(data.train()) + len(test) == 3000
        assert 30 <= len(test) <= 100
        batch = data.train().batch([0, 1500], [0, 1])
        assert batch["audio"].shape == (2, 1, 4000)
        assert batch["labels"][0] == 0
