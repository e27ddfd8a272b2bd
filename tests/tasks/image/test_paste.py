"""The geometry of edits, against slow and plain definitions."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from maskgen.tasks.image.paste import bounding_box, check_count, feather, half_token, plan_crop, token_mask
from maskgen.tasks.media.images import fill_holes


def random_mask(height: int, width: int, seed: int, share: float = 0.1) -> Tensor:
    mask = torch.rand(height, width, generator=torch.Generator().manual_seed(seed)) < share
    mask[seed % height, seed % width] = True
    return mask


def distance(mask: Tensor) -> Tensor:
    """King's moves to the nearest marked pixel."""
    rows, columns = mask.nonzero().T
    y, x = torch.meshgrid(torch.arange(mask.shape[0]), torch.arange(mask.shape[1]), indexing="ij")
    steps = torch.maximum((y[..., None] - rows).abs(), (x[..., None] - columns).abs())
    return steps.amin(-1)


sides = st.integers(1, 24)
seeds = st.integers(0, 999)


@given(h=st.integers(1, 5), w=st.integers(1, 5), side=st.integers(1, 4), dilation=st.integers(0, 3), seed=seeds)
def test_a_token_is_repainted_if_any_of_its_pixels_is(h: int, w: int, side: int, dilation: int, seed: int) -> None:
    mask = random_mask(h * side, w * side, seed, 0.02)
    found = token_mask(mask, (h, w), dilation)
    cells = mask.reshape(h, side, w, side).any(3).any(1)
    assert torch.equal(found.reshape(h, w), distance(cells) <= dilation)


@given(height=sides, width=sides, h=st.integers(1, 8), w=st.integers(1, 8), seed=seeds)
def test_no_marked_pixel_is_lost_at_any_size(height: int, width: int, h: int, w: int, seed: int) -> None:
    mask = random_mask(height, width, seed)
    found = token_mask(mask, (h, w)).reshape(h, w)
    for y, x in mask.nonzero().tolist():
        assert found[y * h // height, x * w // width]
    for i, j in found.nonzero().tolist():
        rows, columns = (
            slice(i * height // h, -(-(i + 1) * height // h)),
            slice(j * width // w, -(-(j + 1) * width // w)),
        )
        assert mask[rows, columns].any()


@given(height=sides, width=sides, reach=st.integers(0, 9), seed=seeds)
def test_feather(height: int, width: int, reach: int, seed: int) -> None:
    mask = random_mask(height, width, seed, 0.01)
    alpha, away = feather(mask, reach), distance(mask)
    torch.testing.assert_close(alpha, (1 - away / (reach + 1)).clamp(min=0))
    assert torch.equal(alpha == 1, mask)
    assert torch.equal(alpha == 0, away > reach)


@given(height=sides, width=sides, seed=seeds)
def test_bounding_box(height: int, width: int, seed: int) -> None:
    mask = random_mask(height, width, seed, 0.02)
    top, left, tall, wide = bounding_box(mask)
    inside = torch.zeros_like(mask)
    inside[top : top + tall, left : left + wide] = True
    assert not (mask & ~inside).any()
    part = mask[top : top + tall, left : left + wide]
    assert part[0].any()
    assert part[-1].any()
    assert part[:, 0].any()
    assert part[:, -1].any()


@given(size=st.tuples(st.integers(2, 99), st.integers(2, 99)), target=st.tuples(sides, sides), seed=seeds)
def test_crop(size: tuple[int, int], target: tuple[int, int], seed: int) -> None:
    bbox = bounding_box(random_mask(*size, seed, 2 / size[0] / size[1]))
    top, left, height, width = plan_crop(size, bbox, target)
    assert 0 <= top <= bbox[0]
    assert 0 <= left <= bbox[1]
    assert bbox[0] + bbox[2] <= top + height <= size[0]
    assert bbox[1] + bbox[3] <= left + width <= size[1]
    if (height, width) != size:
        assert height == size[0] or width == size[1]  # the largest window
        assert abs(height * target[1] - width * target[0]) <= max(target) / 2 + target[0] * target[1]


@pytest.mark.parametrize(
    ("size", "bbox", "expected"),
    [
        ((100, 300), (40, 150, 10, 10), (0, 105, 100, 100)),
        ((100, 300), (40, 20, 10, 10), (0, 0, 100, 100)),
        ((100, 300), (40, 280, 10, 10), (0, 200, 100, 100)),
        ((300, 100), (145, 3, 10, 10), (100, 0, 100, 100)),
        ((100, 300), (0, 100, 10, 101), (0, 0, 100, 300)),  # does not fit: all of it, squeezed
    ],
)
def test_crop_examples(size: tuple[int, int], bbox: tuple[int, int, int, int], expected: tuple[int, ...]) -> None:
    assert plan_crop(size, bbox, (16, 16)) == expected


@given(height=st.integers(2, 40), width=st.integers(2, 40), share=st.floats(0, 0.98), seed=seeds)
def test_holes_are_filled_from_kept_pixels_alone(height: int, width: int, share: float, seed: int) -> None:
    hole = random_mask(height, width, seed, share)
    hole[(seed + 1) % height, (seed + 1) % width] = False
    generator = torch.Generator().manual_seed(seed)
    image, garbage = (torch.rand(3, height, width, generator=generator) for _ in range(2))
    filled = fill_holes(image, hole)
    assert torch.equal(filled[:, ~hole], image[:, ~hole])
    assert torch.equal(filled, fill_holes(torch.where(hole, garbage, image), hole))
    assert torch.equal(filled, fill_holes(torch.where(hole, torch.nan, image), hole))
    kept = image[:, ~hole]
    assert (filled >= kept.amin(1)[:, None, None] - 1e-5).all()
    assert (filled <= kept.amax(1)[:, None, None] + 1e-5).all()


def test_a_hole_in_one_colour_gets_that_colour() -> None:
    hole = torch.zeros(33, 20, dtype=torch.bool)
    hole[4:30, 2:15] = True
    filled = fill_holes(torch.full((3, 33, 20), 0.3).masked_fill(hole, 1.0), hole)
    torch.testing.assert_close(filled, torch.full((3, 33, 20), 0.3))


def test_half_token() -> None:
    assert half_token((256, 256), (16, 16)) == 8
    assert half_token((512, 1024), (16, 16)) == 16
    assert half_token((2, 2), (16, 16)) == 1


@pytest.mark.parametrize(
    ("value", "kind", "message"),
    [
        (-1, ValueError, "top: got -1, expected a whole number of 0 or more"),
        (1.5, TypeError, "top: got 1.5"),
        (True, TypeError, "top: got True"),
        ("1", TypeError, "top: got '1'"),
    ],
)
def test_counts(value: object, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        check_count("top", value)  # type: ignore[arg-type]


def test_mistakes() -> None:
    mask = torch.zeros(4, 4, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"mask: got torch.float32 \(4, 4\), expected bool \[H, W\]"):
        token_mask(mask.float(), (2, 2))
    with pytest.raises(ValueError, match="dilation: got -1"):
        token_mask(mask, (2, 2), -1)
    with pytest.raises(ValueError, match=r"mask: got torch.bool \(1, 4, 4\)"):
        feather(mask[None], 1)
    with pytest.raises(ValueError, match="feather: got -2"):
        feather(mask, -2)
