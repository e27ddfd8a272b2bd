"""Windows over long clips, their joining, given pixels put back, resizing."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from maskgen.tasks.media.video.frames import centre_crop, resize_tf1
from maskgen.tasks.video.fades import clip_windows, composite, composite_weights, cross_fade, paste_given


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def joined(blocks: list[tuple[int, Tensor]]) -> Tensor:
    place, pieces = blocks[0][0], []
    for start, piece in cross_fade(iter(blocks)):
        assert start == place
        place += piece.shape[-3]
        pieces.append(piece)
    return torch.cat(pieces, dim=-3)


@given(total=st.integers(1, 60), half=st.integers(1, 8), data=st.data())
def test_windows_cover_a_clip(total: int, half: int, data: st.DataObject) -> None:
    size, overlap = 2 * half, data.draw(st.integers(0, half))
    found = clip_windows(total, size, overlap)
    assert found[0][0] == 0
    assert found[-1][1] == total
    assert all(stop - start == min(size, total) for start, stop in found)
    for (_, stop), (start, _) in pairwise(found):
        assert stop - start >= overlap
    clip = noise(1, total, 2, 2)
    whole = joined([(start, clip[:, start:stop]) for start, stop in found])
    torch.testing.assert_close(whole, clip)  # what agrees stays as it is


def test_windows_that_leave_out_the_rest() -> None:
    assert clip_windows(37, 8, 4, drop_rest=True)[-1] == (28, 36)
    assert clip_windows(36, 8, 4, drop_rest=True) == clip_windows(36, 8, 4)
    assert clip_windows(7, 8, 4, drop_rest=True) == []
    assert clip_windows(7, 8, 4) == [(0, 7)]
    for total, size, overlap in ((0, 8, 4), (9, 8, 5), (9, 8, -1)):
        with pytest.raises(ValueError, match=r"expected at least 1 frame and an overlap of 0 to 4, half a window"):
            clip_windows(total, size, overlap)


def test_cross_fade() -> None:
    one, other = torch.zeros(2, 3, 8, 1, 1), torch.ones(2, 3, 8, 1, 1)
    found = joined([(0, one), (4, other)])[0, 0, :, 0, 0]
    assert found.tolist() == [0, 0, 0, 0, 0, 0.25, 0.5, 0.75, 1, 1, 1, 1]
    assert joined([(5, one), (13, other)])[0, 0, :, 0, 0].tolist() == [0] * 8 + [1] * 8
    assert list(cross_fade([])) == []


def test_cross_fade_holds_two_clips_at_a_time() -> None:
    taken = []

    def blocks() -> list[tuple[int, Tensor]]:
        for start in range(0, 40, 4):
            taken.append(start)
            yield start, torch.full((1, 8, 1, 1), float(start))  # type: ignore[misc]

    pieces = cross_fade(blocks())  # type: ignore[arg-type]
    for number, (start, piece) in enumerate(pieces):
        assert start == 4 * number
        assert piece.shape[-3] == (4 if number < 9 else 8)
        assert len(taken) <= number + 2


def test_blocks_that_do_not_fit() -> None:
    block = torch.zeros(1, 8, 1, 1)
    for blocks in ([(0, block), (9, block)], [(4, block), (3, block)], [(0, block), (2, block[:, :3])]):
        with pytest.raises(ValueError, match="expected the second to begin within the first or right after it"):
            joined(blocks)


def test_composite_weights() -> None:
    weights = composite_weights((6, 40), left=10, right=12, ramp=8)
    row = [0.0] * 10 + [i / 8 for i in range(8)] + [1.0, 1.0] + [i / 8 for i in range(8)][::-1] + [0.0] * 12
    assert weights[3].tolist() == row
    assert torch.equal(weights, weights[:1].expand(6, 40))
    assert torch.equal(composite_weights((6, 40)), torch.ones(6, 40))
    # Little is given: the ramps take half of it each.
    assert composite_weights((1, 12), left=4, right=4, ramp=8)[0].tolist() == [0] * 4 + [0, 0.5, 0.5, 0] + [0] * 4
    corner = composite_weights((12, 12), top=4, left=4, ramp=4)
    assert corner[5, 7] == corner[7, 5] == 0.75
    for wrong in ({"top": 6}, {"left": 20, "right": 20}, {"bottom": -1}, {"ramp": 0}):
        with pytest.raises(ValueError, match="composite: got top"):
            composite_weights((6, 40), **wrong)


def test_putting_pixels_back() -> None:
    made, clip = noise(2, 3, 4, 6, 6), noise(2, 3, 4, 6, 6, seed=1)
    pixels = noise(1, 1, 4, 6, 6, seed=2) < 0.5
    found = paste_given(made, clip, pixels)
    keep = pixels.expand_as(clip)
    assert torch.equal(found[keep], clip[keep])
    assert torch.equal(found[~keep], made[~keep])
    weights = composite_weights((6, 6), left=2, ramp=2)
    found = composite(made, torch.where(weights > 0, clip, torch.nan), weights)
    assert torch.equal(found[..., 4:], clip[..., 4:])
    assert torch.equal(found[..., :3], made[..., :3])
    torch.testing.assert_close(found[..., 3], (made[..., 3] + clip[..., 3]) / 2)


def test_resizing() -> None:
    video = noise(2, 3, 2, 8, 6)
    assert torch.equal(resize_tf1(video, (8, 6)), video)
    assert torch.equal(resize_tf1(video, (16, 12))[..., ::2, ::2], video)
    assert torch.equal(resize_tf1(video, (4, 3)), video[..., ::2, ::2])  # no low-pass filter
    torch.testing.assert_close(resize_tf1(video, (16, 6))[..., 1, :], (video[..., 0, :] + video[..., 1, :]) / 2)
    assert torch.equal(resize_tf1(video, (16, 6))[..., 15, :], video[..., 7, :])
    ours = F.interpolate(video.flatten(0, 2)[None], size=(16, 12), mode="bilinear").view(2, 3, 2, 16, 12)
    assert not torch.allclose(resize_tf1(video, (16, 12)), ours, atol=0.05)
    with pytest.raises(ValueError, match=r"resize: got \(0, 3\)"):
        resize_tf1(video, (0, 3))


def test_cropping() -> None:
    video = noise(1, 8, 7)
    assert torch.equal(centre_crop(video, (4, 4)), video[:, 2:6, 1:5])
    assert torch.equal(centre_crop(video, (8, 7)), video)
    for size in ((9, 7), (8, 0)):
        with pytest.raises(ValueError, match=r"expected \(height, width\) of at most \(8, 7\), and at least 1"):
            centre_crop(video, size)
