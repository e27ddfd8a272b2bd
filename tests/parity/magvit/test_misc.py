"""Long clips, outpainting weights, resizing and cropping against the official MAGVIT outputs.

Shapes: official video is [.., T, H, W, C].
"""

import re
from pathlib import Path

import pytest
import torch
from torch import Tensor

from maskgen.tasks.media.video.frames import centre_crop, resize_tf1
from maskgen.tasks.video.fades import clip_windows, composite_weights, cross_fade
from tests.parity.support import files, load

FILES = [path for path in files("magvit", "misc*.safetensors") if "overlap/in" in load(path)]
OVERLAPS = [(path, key) for path in FILES for key in load(path) if key.startswith("overlap/out_")]
WINDOWS = [(path, key) for path in FILES for key in load(path) if key.startswith("windows/out_")]
COMPOSITES = [(path, key) for path in FILES for key in load(path) if key.startswith("composite_")]


def label(value: object) -> str:
    return str(getattr(value, "stem", value))


def numbers(key: str) -> dict[str, int]:
    return {name: int(digits) for name, digits in re.findall(r"_([a-z])(\d+)", key)}


def first(video: Tensor) -> Tensor:
    """[.., H, W, C] -> [C, .., H, W]."""
    return video.movedim(-1, 0)


def test_everything_was_found() -> None:
    assert FILES
    assert min(len(OVERLAPS), len(WINDOWS)) >= 2
    assert COMPOSITES


@pytest.mark.parametrize(("path", "key"), OVERLAPS, ids=label)
def test_overlaps(path: Path, key: str) -> None:
    """The official function returns the frames in pieces of a window's length, the last one filled up with zeros."""
    data, overlap = load(path), int(key.rsplit("_", 1)[1])
    video = first(data["overlap/in"])
    count, size = video.shape[1:3]
    total = size + (count - 1) * (size - overlap)
    starts = [start for start, _ in clip_windows(total, size, overlap)]
    assert len(starts) == count
    pieces = list(cross_fade((start, video[:, number]) for number, start in enumerate(starts)))
    joined = torch.cat([clip for _, clip in pieces], dim=1)
    expected = first(data[key]).flatten(1, 2)
    torch.testing.assert_close(joined, expected[:, :total], rtol=0, atol=2e-7)
    assert not expected[:, total:].any()


@pytest.mark.parametrize(("path", "key"), WINDOWS, ids=label)
def test_windows(path: Path, key: str) -> None:
    """Official windows come in batches; what fills no window is left out."""
    data, named = load(path), numbers(key)
    video = data["windows/in"]
    found = clip_windows(len(video), named["w"], named["o"], drop_rest=True)
    expected = data[key].flatten(0, 1)
    assert data[key].shape[1] == named["b"]
    assert 0 <= len(found) - len(expected) < named["b"]
    for (start, stop), window in zip(found, expected, strict=False):
        assert torch.equal(video[start:stop], window)


@pytest.mark.parametrize(("path", "key"), COMPOSITES, ids=label)
def test_composite_weights(path: Path, key: str) -> None:
    expected, named = load(path)[key][0], numbers(key)
    ramp = round(1 / float(expected[expected > 0].min()))  # its length is not in the name, its first step shows it
    sides = {"top": named["t"], "bottom": named["b"], "left": named["l"], "right": named["r"]}
    height, width = expected.shape[:2]
    found = composite_weights((height, width), **sides, ramp=ramp)
    torch.testing.assert_close(found[..., None].expand_as(expected), expected, rtol=0, atol=1e-7)
    assert not torch.equal(found, composite_weights((height, width), **sides, ramp=ramp + 1))


@pytest.mark.parametrize("path", FILES, ids=label)
def test_resize_and_crop(path: Path) -> None:
    data = load(path)
    video = data["resize/in"].movedim(-1, 1)  # [1, C, T, H, W]
    expected = data["resize/out"].movedim(-1, 1)
    found = resize_tf1(video, (expected.shape[-2], expected.shape[-1]))
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-6)
    cropped = data["resize/crop"].movedim(-1, 1)
    assert torch.equal(centre_crop(video, (cropped.shape[-2], cropped.shape[-1])), cropped)
