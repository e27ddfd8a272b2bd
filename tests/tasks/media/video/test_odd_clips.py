"""A battery of odd and damaged clips: each is read frame by frame as PyAV decodes it, or refused in one line."""

import contextlib
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from maskgen.tasks.media.video.files import VIDEO_SUFFIXES, VideoFile
from tests.tasks.media.video.odd_clips import CLIPS, DAMAGED, Odd, as_shown, damage, decoded_frames

BY_NAME = {odd.name: odd for odd in CLIPS}


@contextlib.contextmanager
def warned(odd: Odd) -> Iterator[None]:
    """Warnings are errors in these tests: of a clip that is as it should be there is none."""
    if odd.remark is None:
        yield
    else:
        with pytest.warns(UserWarning, match=odd.remark):
            yield


def test_there_are_many() -> None:
    assert len(CLIPS) >= 60
    assert len(BY_NAME) == len(CLIPS)
    rare = {Path(name).suffix for name in BY_NAME} - VIDEO_SUFFIXES
    assert rare == {".h264", ".ivf", ".nut"}, "which are opened as an Excerpt"


@pytest.mark.parametrize("odd", CLIPS, ids=lambda odd: odd.name)
def test_an_odd_clip(tmp_path: Path, odd: Odd) -> None:
    """Colours, shape, times and count, read at once and from the middle."""
    path = odd.make(tmp_path)
    if odd.refused is not None:
        with pytest.raises(ValueError, match=rf"{odd.name}: {odd.refused}") as told:
            VideoFile(path)
        assert "\n" not in str(told.value)
        return
    frames = list(decoded_frames(path))
    expected = np.stack([as_shown(frame, odd) for frame in frames])
    with warned(odd), VideoFile(path) as file:
        found = file.read()
        assert found.shape == expected.shape == (file.frames, file.height, file.width, 3)
        assert np.array_equal(found, expected)
        middle = len(expected) // 2
        assert np.array_equal(file.read([middle]), expected[middle : middle + 1])
        assert file.frame_rate == odd.rate or odd.times is not None
        assert file.variable_rate is (odd.times is not None)
        if odd.name != "joined.ts" and frames[0].time is not None:
            times = [frame.time - frames[0].time for frame in frames if frame.time is not None]
            assert file.times == pytest.approx(times, abs=1e-6)
        if not file.variable_rate:
            assert file.at_rate(odd.rate) == list(range(len(expected)))
            assert file.duration == pytest.approx(len(expected) / odd.rate)


def read(path: Path) -> tuple[np.ndarray | None, str]:
    """All frames, or why not."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what damage makes of headers may be remarkable
        try:
            with VideoFile(path) as file:
                return file.read(), ""
        except ValueError as error:
            return None, str(error)


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_clips(tmp_path: Path, name: str) -> None:
    """Cut off or with bytes overwritten: what is read is what PyAV decodes, and nothing of it was guessed."""
    whole, fates = BY_NAME[name].make(tmp_path).read_bytes(), {"read": 0, "refused": 0}
    for seed in range(24):
        path = tmp_path / f"{seed} {name}"
        path.write_bytes(damage(whole, seed))
        found, told = read(path)
        fates["refused" if found is None else "read"] += 1
        if found is None:
            assert told.startswith(str(path)), told
            assert "\n" not in told
            continue
        expected = [frame.to_ndarray(format="rgb24") for frame in decoded_frames(path) if not frame.is_corrupt]
        assert len(found) == len(expected), seed
        assert np.array_equal(found, expected) or found.shape[1:] != expected[0].shape, f"{seed}: frames differ"
    assert min(fates.values()) > 0, fates
