"""Clips resized as the official evaluation does it."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from maskgen.tasks.media.video.frames import resize_tf1


def noise(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(0))


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
