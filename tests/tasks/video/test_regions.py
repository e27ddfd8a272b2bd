"""Masks of clips: each frame is painted where its own mask says, whatever the spacing of both."""

import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from maskgen.tasks.media.video.files import VideoFile, save_video
from maskgen.tasks.video import inpaint_video
from maskgen.tasks.video.regions import inpainted_region
from maskgen.tasks.video.source import Excerpt, open_clip
from tests.tasks.media.video.samples import write
from tests.tasks.video.toys import SIDE, Frames, pipeline

UNEVEN = [time + 320 * number for number in range(6) for time in (0, 200, 240, 280)]
SIZE = 32


def squares(count: int, grow: int = 0) -> Frames:
    """A bright square that goes four pixels to the right each frame, or a mask around it."""
    frames = np.zeros((count, SIZE, SIZE, 3), np.uint8)
    for number, frame in enumerate(frames):
        left = 4 * number % (SIZE - 8)
        frame[12 - grow : 20 + grow, max(0, left - grow) : left + 8 + grow] = 255
    return frames


@pytest.fixture(autouse=True)
def told() -> Iterator[list[warnings.WarningMessage]]:
    """Uneven frames are warned of, which is tested elsewhere."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield caught


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    """24 frames: a long one, then three short ones, and so on."""
    return write(tmp_path / "clip.mp4", squares(24), times=UNEVEN)


def uncovered(clip: Path, mask: Path | Frames, **part: float) -> int:
    """Frames of which some of the square is kept, at the clip's own size."""
    source = open_clip(Excerpt(clip, **part), (SIZE, SIZE))  # type: ignore[arg-type]
    region, _, _ = inpainted_region(mask, source, (SIZE, SIZE))
    bright = source.read(0, source.frames)[0, 0] > 0.6
    return sum(bool((frame & kept).any()) for frame, kept in zip(bright, region.kept(0, source.frames), strict=True))


def test_a_mask_with_the_stamps_of_its_clip(tmp_path: Path, clip: Path) -> None:
    mask = write(tmp_path / "mask.mp4", squares(24, grow=2), times=UNEVEN)
    for part in (
        {},
        {"start": 0.5},
        {"frames": 9},
        {"start": 0.3, "frames": 9},
        {"frame_rate": 25},
        {"frame_rate": 10},
    ):
        assert uncovered(clip, mask, **part) == 0, part


def test_a_mask_made_frame_for_frame_but_evenly_spaced(
    tmp_path: Path, clip: Path, told: list[warnings.WarningMessage]
) -> None:
    """As programs write it that know frames only by their numbers."""
    save_video(squares(24, grow=2), tmp_path / "mask.mp4", 30, quality=0)
    assert uncovered(clip, tmp_path / "mask.mp4") == 0
    assert any("mask.mp4: evenly spaced, but the clip's frames are not" in str(one.message) for one in told)
    assert uncovered(clip, squares(24, grow=2)[..., 0]) == 0, "an array of them likewise"


def test_a_mask_of_the_frames_that_are_taken(tmp_path: Path, clip: Path) -> None:
    with VideoFile(clip) as file:
        taken = file.at_rate(20)
    save_video(squares(24, grow=2)[taken], tmp_path / "mask.mp4", 20, quality=0)
    assert uncovered(clip, tmp_path / "mask.mp4", frame_rate=20) == 0
    assert uncovered(clip, squares(24, grow=2)[taken][..., 0], frame_rate=20) == 0


def test_a_mask_at_another_rate_is_taken_by_time(tmp_path: Path) -> None:
    save_video(squares(24), tmp_path / "clip.mp4", 10, quality=0)
    save_video(squares(30, grow=2).repeat(3, axis=0), tmp_path / "mask.mp4", 30, quality=0)
    assert uncovered(tmp_path / "clip.mp4", tmp_path / "mask.mp4") == 0
    save_video(squares(40, grow=2), tmp_path / "short.mp4", 30)
    with pytest.raises(ValueError, match=r"mask: got 40 frames of 32 x 32, expected 24 or more of 32 x 32"):
        uncovered(tmp_path / "clip.mp4", tmp_path / "short.mp4")


def test_the_other_frames_are_not_touched(tmp_path: Path, told: list[warnings.WarningMessage]) -> None:
    """The whole way: what is kept of each frame is that frame's."""
    frames = squares(24)[:, ::4, ::4]
    clip = write(tmp_path / "clip.mkv", frames, codec="ffv1", pixels="bgr0", times=UNEVEN)
    marked = np.zeros((24, SIDE, SIDE), bool)
    marked[np.arange(24), 3:5, np.arange(24) % 6] = True
    made = inpaint_video(pipeline(), clip, marked, seeds=[0])[0]
    with VideoFile(clip) as file:
        taken = file.at_rate(file.frame_rate)
    assert np.array_equal(made[~marked[taken]], frames[taken][~marked[taken]])
    assert any("frames are not evenly spaced: taken by time" in str(one.message) for one in told)
