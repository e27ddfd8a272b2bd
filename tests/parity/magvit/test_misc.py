"""Long clips and resizing against the official MAGVIT outputs.

Shapes: official video is [.., T, H, W, C].
"""

import re
from pathlib import Path

import pytest
import torch
from torch import Tensor

from maskgen.tasks.media.video.frames import resize_tf1
from maskgen.tasks.media.windows import linear_fade, stitch, windows
from tests.parity.support import check_count, load, recordings

FILES = [path for path in recordings("magvit", "misc*.safetensors") if "overlap/in" in load(path)]
OVERLAPS = [(path, key) for path in FILES for key in load(path) if key.startswith("overlap/out_")]
WINDOWS = [(path, key) for path in FILES for key in load(path) if key.startswith("windows/out_")]


def label(value: object) -> str:
    return str(getattr(value, "stem", value))


def numbers(key: str) -> dict[str, int]:
    return {name: int(digits) for name, digits in re.findall(r"_([a-z])(\d+)", key)}


def first(video: Tensor) -> Tensor:
    """[.., H, W, C] -> [C, .., H, W]."""
    return video.movedim(-1, 0)


def test_everything_was_found() -> None:
    assert FILES
    check_count("magvit", OVERLAPS, 2)
    check_count("magvit", WINDOWS, 2)


@pytest.mark.parametrize(("path", "key"), OVERLAPS, ids=label)
def test_overlaps(path: Path, key: str) -> None:
    """The official function returns the frames in pieces of a window's length, the last one filled up with zeros."""
    data, overlap = load(path), int(key.rsplit("_", 1)[1])
    video = first(data["overlap/in"])
    count, size = video.shape[1:3]
    total = size + (count - 1) * (size - overlap)
    starts = [start for start, _ in windows(total, size, overlap)]
    assert len(starts) == count
    blocks = ((start, video[:, number]) for number, start in enumerate(starts))
    pieces = list(stitch(blocks, weights=linear_fade, axis=-3))
    joined = torch.cat([clip for _, clip in pieces], dim=1)
    expected = first(data[key]).flatten(1, 2)
    torch.testing.assert_close(joined, expected[:, :total], rtol=0, atol=2e-7)
    assert not expected[:, total:].any()


@pytest.mark.parametrize(("path", "key"), WINDOWS, ids=label)
def test_windows(path: Path, key: str) -> None:
    """Official windows come in batches; what fills no window is left out, where ours has one more, moved back."""
    data, named = load(path), numbers(key)
    video = data["windows/in"]
    stride = named["w"] - named["o"]
    found = [window for window in windows(len(video), named["w"], named["o"]) if window[0] % stride == 0]
    expected = data[key].flatten(0, 1)
    assert data[key].shape[1] == named["b"]
    assert 0 <= len(found) - len(expected) < named["b"]
    for (start, stop), window in zip(found, expected, strict=False):
        assert torch.equal(video[start:stop], window)


@pytest.mark.parametrize("path", FILES, ids=label)
def test_resize(path: Path) -> None:
    data = load(path)
    video = data["resize/in"].movedim(-1, 1)  # [B, C, T, H, W]
    expected = data["resize/out"].movedim(-1, 1)
    found = resize_tf1(video, (expected.shape[-2], expected.shape[-1]))
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-6)
