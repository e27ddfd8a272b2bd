"""Folders of video: which files, which excerpts, what happens to broken ones."""

import pickle
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from maskgen.data import training_batches
from maskgen.tasks.data.file_sets import FileSource
from maskgen.tasks.data.video.folders import VideoFolder
from maskgen.tasks.media.video.files import to_video_tensor
from tests.tasks.media.video.samples import cut, decoded, moving, spoil, write

NAMES = [f"{number:02}.mp4" for number in range(12)]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve clips of 24 frames, 24 x 32 pixels, each of another shade."""
    root = tmp_path_factory.mktemp("videos")
    for number, name in enumerate(NAMES):
        frames = moving(24, 24, 32)
        frames[..., 1] = 20 * number
        write(root / name, frames)
    return root


@pytest.fixture
def root(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "videos"))


def clips(source: FileSource, indices: list[int], seeds: list[int]) -> Tensor:
    return source.batch(indices, seeds)["video"]


def test_examples_are_what_the_settings_say(made: Path) -> None:
    data = VideoFolder(made, 8, 16, held_out=0.3)
    assert (data.size, data.key, data.modality, data.frame_rate) == ((8, 16, 16), "video", "video", None)
    assert data.class_names == ()
    train, test = data.train(), data.test()
    assert test is not None
    assert len(train) + len(test) == 12
    batch = train.batch(range(len(train)), range(len(train)))
    assert set(batch) == {"video"}
    assert batch["video"].shape == (len(train), 3, 8, 16, 16)
    assert batch["video"].dtype == torch.float32
    assert 0 <= batch["video"].min() < 0.1 < 0.9 < batch["video"].max() <= 1


@pytest.mark.parametrize("stride", [1, 3])
def test_an_excerpt_is_a_part_of_the_file(made: Path, stride: int) -> None:
    """At the size of the file there is nothing to resize: pixels are those of the file."""
    source = VideoFolder(made, 4, 24, 32, stride=stride, flip=False, held_out=0.0).train()
    whole, starts = to_video_tensor(decoded(made / NAMES[5]))[0], set()
    for seed in range(16):
        clip = clips(source, [5], [seed])[0]
        found = [
            start
            for start in range(24 - 3 * stride)
            if torch.equal(whole[:, start : start + 3 * stride + 1 : stride], clip)
        ]
        assert len(found) == 1
        starts.update(found)
    assert len(starts) > 6
    assert min(starts) < 6
    assert max(starts) > 11


def test_crops_and_mirror_images(made: Path) -> None:
    """The file is twice as wide as what is asked for: it is cropped at random, and mirrored in half of the examples."""
    source = VideoFolder(made, 1, 24, 16, held_out=0.0).train()
    whole = to_video_tensor(decoded(made / NAMES[0]))[0]
    lefts, mirrored = set(), 0
    for seed in range(30):
        clip = clips(source, [0], [seed])[0, :, 0]
        places = [
            (left, turned)
            for frame in range(24)
            for left in range(17)
            for turned in (False, True)
            if torch.equal(
                whole[:, frame, :, left : left + 16].flip(-1) if turned else whole[:, frame, :, left : left + 16], clip
            )
        ]
        assert len(places) == 1
        lefts.add(places[0][0])
        mirrored += places[0][1]
    assert len(lefts) > 8
    assert 7 < mirrored < 23


def test_resizing_covers_the_size(made: Path) -> None:
    """24 x 32 pixels become 12 x 16, of which 12 x 12 are taken; none is black."""
    video = clips(VideoFolder(made, 2, 12, held_out=0.0).train(), [11, 11], [0, 1])
    assert video.shape == (2, 3, 2, 12, 12)
    assert video[:, 1].min() > 0.5
    assert clips(VideoFolder(made, 2, 48, 40, held_out=0.0).train(), [11], [0]).shape == (1, 3, 2, 48, 40)


def test_frames_by_time(made: Path) -> None:
    """The files have 10 frames a second."""
    for rate, wanted in ((5.0, [0, 2, 4, 6]), (20.0, [0, 0, 1, 1])):
        data = VideoFolder(made, 4, 24, 32, frame_rate=rate, flip=False, held_out=0.0)
        assert data.frame_rate == rate
        whole, clip = to_video_tensor(decoded(made / NAMES[2]))[0], clips(data.train(), [2], [3])[0]
        # At 20 a second each frame is shown twice, and an excerpt may begin with either.
        patterns = [np.array(wanted), np.array([0, 1, 1, 2])][: 2 if rate > 10 else 1]
        found = [(start, steps[1]) for steps in patterns for start in range(24 - steps[-1])
                 if torch.equal(whole[:, steps + start], clip)]  # fmt: skip
        assert len(found) == 1


def test_seed_and_file_alone_decide(made: Path) -> None:
    source = VideoFolder(made, 4, 16, held_out=0.0).train()
    together = clips(source, [0, 5, 2, 5], [7, 8, 9, 10])
    alone = [clips(source, [index], [seed])[0] for index, seed in ((0, 7), (5, 8), (2, 9), (5, 10))]
    assert torch.equal(together, torch.stack(alone))
    assert not torch.equal(together[1], together[3])
    again = pickle.loads(pickle.dumps(VideoFolder(made, 4, 16, held_out=0.0))).train()
    assert torch.equal(clips(again, [5], [8])[0], together[1])


def test_held_out_examples_are_the_middle(made: Path) -> None:
    data = VideoFolder(made, 4, 24, held_out=0.3)
    test = data.test()
    assert test is not None
    found = clips(test, [0, 0], [1, 2])
    whole = to_video_tensor(decoded(made / test.names[0]))[0]
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], whole[:, 10:14, :, 4:28])
    assert VideoFolder(made, 4, 24, held_out=0.0).test() is None


def test_new_files_move_no_other(made: Path, root: Path) -> None:
    before = VideoFolder(made, 4, 16, held_out=0.3)
    for number in range(5):
        shutil.copy(root / NAMES[number], root / f"more{number}.mp4")
    after = VideoFolder(root, 4, 16, held_out=0.3)
    assert set(before.train().names) <= set(after.train().names)
    assert 0 < len(before.test() or ()) < 12


def test_folders_are_classes(made: Path, tmp_path: Path) -> None:
    for number, name in enumerate(NAMES[:4]):
        place = tmp_path / "v" / ("run" if number % 2 else "jump") / "deep" / name
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(made / name, place)
    data = VideoFolder(tmp_path / "v", 4, 16, labels=True, held_out=0.0)
    assert data.class_names == ("jump", "run")
    batch = data.train().batch(range(4), range(4))
    assert batch["labels"].tolist() == [0, 0, 1, 1]
    assert batch["labels"].dtype == torch.long
    assert VideoFolder(tmp_path / "v", 4, 16, held_out=0.0).class_names == ()
    shutil.copy(made / NAMES[0], tmp_path / "v" / "loose.mp4")
    with pytest.raises(ValueError, match=r"loose\.mp4 outside of any folder, expected one folder a class"):
        VideoFolder(tmp_path / "v", 4, 16, labels=True)


def test_files_that_cannot_be_used_are_left_out_and_named(root: Path) -> None:
    (root / "03.mp4").write_text("no video at all")
    write(root / "04.mp4", moving(3))
    (root / "notes.txt").write_text("not asked for")
    (root / ".hidden.mp4").write_text("neither")
    told = r"2 of 12 files left out: .*03\.mp4: no video file.*04\.mp4: too short: it has 3 frames, expected at least 4"
    with pytest.warns(UserWarning, match=told):
        data = VideoFolder(root, 4, 16, held_out=0.0)
    assert [name for name, _ in data.skipped] == ["03.mp4", "04.mp4"]
    assert len(data.train()) == 10
    with pytest.raises(ValueError, match=r"2 of 12 files cannot be used, expected at most a share of 0\.1 \(broken\)"):
        VideoFolder(root, 4, 16, broken=0.1)
    cut(root / "05.mp4", 0.5)
    with pytest.raises(ValueError, match=r"3 of 12 files cannot be used, expected at most a share of 0\.2"):
        VideoFolder(root, 4, 16)


def test_files_damaged_inside_are_replaced(root: Path) -> None:
    for name in ("02.mp4", "03.mp4", "07.mp4"):
        spoil(root / name, 12)  # from the second key frame on
    data = VideoFolder(root, 24, 16, held_out=0.0, reader="pyav", flip=False)
    source = data.train()
    assert (len(source), data.skipped) == (12, [])
    with pytest.warns(UserWarning, match=r"1 skipped so far: .*07\.mp4: damaged: frame 12 of 24 cannot be decoded"):
        first = clips(source, [7], [11])
    assert [name for name, _ in data.skipped] == ["07.mp4"]
    with warnings.catch_warnings():  # said once
        warnings.simplefilter("error")
        assert torch.equal(clips(source, [6, 7], [1, 11])[1:], first)
    assert not {round(float(first[0, 1].median()) * 255 / 20)} & {7}
    with pytest.raises(ValueError, match="3 of 12 files cannot be used"):
        clips(source, [2, 3], [1, 2])


def test_a_half_of_damaged_files_ends(root: Path) -> None:
    spoil(root / "07.mp4", 12)
    source = FileSource(VideoFolder(root, 24, 16, held_out=0.0, reader="pyav"), ["07.mp4"], fixed=True)
    with pytest.warns(UserWarning, match="1 skipped"), pytest.raises(ValueError, match="all 1 files of this half"):
        source.batch([0], [0])


def test_loader_processes_see_the_same(made: Path) -> None:
    source = VideoFolder(made, 4, 16).train()
    source.batch([0], [0])  # decoders of this process must not be in the way of others
    one, two = (
        [batch["video"] for batch in training_batches(source, batch_size=2, seed=0, stop=3, workers=workers)]
        for workers in (0, 1)
    )
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


def test_what_is_refused(made: Path, tmp_path: Path) -> None:
    (tmp_path / "nothing").mkdir()
    with pytest.raises(FileNotFoundError, match="no such folder, expected one of video files"):
        VideoFolder(tmp_path / "missing")
    with pytest.raises(ValueError, match=r"no video files found; expected names that end in \.3gp, \.asf, \.avi"):
        VideoFolder(tmp_path / "nothing")
    for wrong in ({"frames": 0}, {"height": 0}, {"stride": 0}, {"frame_rate": 0.0}, {"frame_rate": 5.0, "stride": 2}):
        with pytest.raises(ValueError, match="expected 1 or more of each, and a stride or a frame rate above 0"):
            VideoFolder(made, **wrong)
    for share in ({"held_out": 1.0}, {"broken": -0.1}):
        with pytest.raises(ValueError, match="expected shares from 0 to below 1"):
            VideoFolder(made, **share)
    shutil.copytree(made, tmp_path / "one", ignore=shutil.ignore_patterns(*NAMES[1:]))
    with pytest.raises(ValueError, match="all 1 files are held out"):
        VideoFolder(tmp_path / "one", 4, 16, held_out=0.999999)


def test_what_is_odd_of_files_is_said_once(tmp_path: Path) -> None:
    """Of all files together, and not at each example."""
    for number in range(3):
        path = write(tmp_path / f"{number}.ts", moving(40), rate=25)
        data = path.read_bytes()
        path.write_bytes(data[len(data) // 188 // 4 * 188 :])
    write(tmp_path / "whole.mp4", moving(40))
    with pytest.warns(UserWarning, match=r"3 of 4 files, such as 0\.ts: begins between key frames") as told:
        data = VideoFolder(tmp_path, frames=8, height=16, held_out=0.0)
    assert len(told) == 1
    assert data.skipped == []
    data.train().batch(range(4), range(4))


def test_frames_that_are_not_evenly_spaced(tmp_path: Path) -> None:
    write(tmp_path / "phone.mp4", moving(8), times=[0, 100, 200, 300, 900, 1000, 1100, 1200])
    with pytest.warns(UserWarning, match=r"1 of 1 files, such as phone\.mp4: frames are not evenly spaced in time"):
        VideoFolder(tmp_path, frames=4, height=16, held_out=0.0)
    VideoFolder(tmp_path, frames=4, height=16, held_out=0.0, frame_rate=10)  # by time: nothing to say
