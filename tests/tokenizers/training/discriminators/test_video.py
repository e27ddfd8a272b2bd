"""The discriminators of clips and of frames: sizes and settings."""

from typing import Any

import pytest
import torch

from maskgen.tokenizers.training.discriminators.video import (
    ClipDiscriminator,
    DownBlock3D,
    FrameDiscriminator,
    VideoDiscriminatorConfig,
    build_video_discriminator,
)
from maskgen.tokenizers.training.losses.image import r1_penalty


def config(**changes: Any) -> VideoDiscriminatorConfig:
    plain: dict[str, Any] = {"size": (4, 8, 6), "channels": 4, "multipliers": (1, 2), "groups": 2}
    return VideoDiscriminatorConfig(**(plain | changes))


@pytest.mark.parametrize("norm", [None, "group", "layer"])
@pytest.mark.parametrize("size", [(4, 8, 6), (1, 5, 3)])
def test_one_logit_a_clip(norm: Any, size: tuple[int, int, int]) -> None:
    model = build_video_discriminator(config(norm=norm, size=size))
    assert isinstance(model, ClipDiscriminator)
    video = torch.rand(3, 3, *size)
    logits = model(video)
    assert logits.shape == (3, 1)
    torch.testing.assert_close(model(video[1:2]), logits[1:2])
    (logits.sum() + r1_penalty(model, video)).backward()
    assert [name for name, weight in model.named_parameters() if weight.grad is None] == []


@pytest.mark.parametrize("blur_size", [0, 4])
def test_one_logit_a_frame(blur_size: int) -> None:
    model = build_video_discriminator(config(kind="frame", blur_size=blur_size))
    assert isinstance(model, FrameDiscriminator)
    video = torch.rand(2, 3, 5, 8, 6)  # any number of frames
    logits = model(video)
    assert logits.shape == (2, 5, 1)
    torch.testing.assert_close(model(video[:, :, 2:3]), logits[:, 2:3])
    logits.sum().backward()
    assert [name for name, weight in model.named_parameters() if weight.grad is None] == []


def test_last_map() -> None:
    assert VideoDiscriminatorConfig().last_map == (1, 4, 4)
    assert VideoDiscriminatorConfig(size=(17, 100, 64)).last_map == (1, 4, 2)
    assert config().widths == (4, 8)


def test_a_block_halves_every_axis() -> None:
    block = DownBlock3D(4, 6, None, 1)
    assert block(torch.rand(1, 4, 5, 6, 7)).shape == (1, 6, 3, 3, 4)


def test_start() -> None:
    model = build_video_discriminator(VideoDiscriminatorConfig(channels=32, multipliers=(2,), size=(2, 4, 4)))
    kernel = model.conv_out.weight
    assert kernel.var().item() == pytest.approx(2 / (2 * 64 * 27), rel=0.03)
    assert not model.conv_out.bias.any()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "video"}, "kind: got 'video', expected 'clip' or 'frame'"),
        ({"norm": "batch"}, "norm: got 'batch', expected 'group', 'layer' or None"),
        ({"size": (4, 8)}, r"size: got \(4, 8\), expected frames, height and width"),
        ({"size": (0, 8, 8)}, "size: got"),
        ({"multipliers": ()}, r"multipliers: got \(\)"),
        ({"channels": 0}, "channels, groups: got 0, 2"),
        ({"kind": "frame", "blur_size": 2}, "blur_size: got 2, expected 3 to 7 taps, or 0"),
        ({"blur_size": 4}, "blur_size: got 4 for 'clip', expected 0"),
        ({"kind": "frame", "norm": "layer"}, "norm: got 'layer' for 'frame', expected None"),
        ({"norm": "group", "groups": 3}, r"channels: got widths \(4, 4, 8\), expected multiples of groups=3"),
    ],
)
def test_config_refuses(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config(**changes)


def test_other_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"video: got shape \(1, 3, 4, 8, 8\), expected \[B, 3, 4, 8, 6\]; resize"):
        build_video_discriminator(config())(torch.zeros(1, 3, 4, 8, 8))
    frames = build_video_discriminator(config(kind="frame"))
    with pytest.raises(ValueError, match=r"video: got shape \(1, 3, 9, 8, 8\), expected \[B, 3, 9, 8, 6\]"):
        frames(torch.zeros(1, 3, 9, 8, 8))
    with pytest.raises(ValueError, match=r"video: got shape \(1, 3, 8, 6\)"):
        frames(torch.zeros(1, 3, 8, 6))
