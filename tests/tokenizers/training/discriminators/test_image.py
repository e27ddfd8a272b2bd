"""The discriminator: sizes, low-pass, settings."""

import pytest
import torch

from maskgen.tokenizers.training.discriminators.image import BlurPool, DiscriminatorConfig, StyleGANDiscriminator


@pytest.mark.parametrize("size", [4, 8, 32])
@pytest.mark.parametrize("blur", [0, 4])
def test_one_logit_an_image(size: int, blur: int) -> None:
    model = StyleGANDiscriminator(DiscriminatorConfig(image_size=size, max_width=6, blur_size=blur))
    images = torch.rand(3, 3, size, size, requires_grad=True)
    logits = model(images)
    assert logits.shape == (3, 1)
    torch.testing.assert_close(model(images[1:2]), logits[1:2])
    logits.sum().backward()
    assert all(weight.grad is not None for weight in model.parameters())
    assert len(model.blocks) == {4: 0, 8: 1, 32: 3}[size]


def test_official_widths() -> None:
    config = DiscriminatorConfig()
    assert [config.width(4 * 2**i) for i in range(9)] == [512, 512, 512, 512, 256, 128, 64, 32, 16]
    double = DiscriminatorConfig(channel_multiplier=2, max_width=1024)
    assert [double.width(side) for side in (4, 32, 64, 128)] == [512, 512, 512, 256]
    assert DiscriminatorConfig(max_width=100).width(256) == 64
    with torch.device("meta"):
        model = StyleGANDiscriminator(config)
    assert model.conv_in.weight.shape == (64, 3, 3, 3)
    assert model.dense1.weight.shape == (512, 8192)


@pytest.mark.parametrize("size", [3, 4, 5, 6, 7])
def test_blur_keeps_a_constant_inside(size: int) -> None:
    blur = BlurPool(size)
    assert blur.kernel.sum().item() == pytest.approx(1)
    assert not blur.state_dict()
    out = blur(torch.ones(1, 2, 16, 16))
    assert out.shape == (1, 2, 8, 8)
    torch.testing.assert_close(out[:, :, 2:-2, 2:-2], torch.ones(1, 2, 4, 4))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"image_size": 48}, "image_size: got 48, expected one of"),
        ({"blur_size": 2}, "blur_size: got 2, expected 3 to 7 taps, or 0"),
        ({"max_width": 0}, "channel_multiplier, max_width: got 1, 0"),
    ],
)
def test_config_refuses(settings: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DiscriminatorConfig(**settings)


def test_other_sizes_are_refused() -> None:
    model = StyleGANDiscriminator(DiscriminatorConfig(image_size=8, max_width=4))
    with pytest.raises(ValueError, match=r"got shape \(1, 3, 16, 16\), expected \[B, 3, 8, 8\]"):
        model(torch.zeros(1, 3, 16, 16))
