"""PSNR, SSIM, LPIPS and use of codes: closed forms, an independent SSIM, and what is said without a network."""

import math
from pathlib import Path
from urllib.error import URLError

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from maskgen.tasks.evaluation.metrics.reconstruction import (
    CodeUse,
    PixelScores,
    clip_psnr,
    frame_psnr,
    perceptual_net,
    ssim,
)
from maskgen.tokenizers.training.losses.perceptual import Perceptual


def pictures(count: int, seed: int, size: int = 16) -> Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(seed))


def plain_ssim(a: Tensor, b: Tensor) -> float:
    """Of one grey picture, by its formula; borders mirrored."""
    places = torch.arange(11).double() - 5
    window = torch.exp(-(places**2) / (2 * 1.5**2))
    window = torch.outer(window, window) / window.sum() ** 2

    def mean(x: Tensor) -> Tensor:
        return F.conv2d(F.pad(x[None, None], (5, 5, 5, 5), mode="reflect"), window[None, None])[0, 0]

    a, b = a.double(), b.double()
    ma, mb = mean(a), mean(b)
    va, vb, vab = mean(a * a) - ma**2, mean(b * b) - mb**2, mean(a * b) - ma * mb
    c1, c2 = 0.01**2, 0.03**2
    values = (2 * ma * mb + c1) * (2 * vab + c2) / ((ma**2 + mb**2 + c1) * (va + vb + c2))
    return float(values.mean())


def test_ssim_by_its_formula() -> None:
    a, b = pictures(2, 0, 24), pictures(2, 0, 24) * 0.6 + pictures(2, 1, 24) * 0.4
    found = ssim(a, b)
    assert found.shape == (2,)
    for index in range(2):
        expected = sum(plain_ssim(a[index, c], b[index, c]) for c in range(3)) / 3
        assert float(found[index]) == pytest.approx(expected, abs=1e-5)
    assert ssim(a, a).tolist() == pytest.approx([1, 1])
    with pytest.raises(ValueError, match="equal ones \\[B, 3, H, W\\] of at least 11 pixels a side; leave ssim out"):
        ssim(pictures(1, 0, 8), pictures(1, 0, 8))


def test_psnr_in_closed_form() -> None:
    scores = PixelScores(("psnr",))
    black = torch.zeros(2, 3, 12, 12)
    scores.update(black, torch.stack((black[0] + 0.2, black[0] + 0.4)))  # errors 0.04 and 0.16
    found = scores.metrics()["psnr"]
    expected = (13.9794, 7.9588)
    assert found.value == pytest.approx(sum(expected) / 2, abs=1e-3)  # of the PSNRs, not of the mean error
    assert found.count == 2
    assert scores.values()["psnr"].tolist() == pytest.approx(expected, abs=1e-3)


def test_psnr_of_frames_and_of_parts_of_clips() -> None:
    clip = torch.zeros(2, 3, 4, 8, 6)
    other = clip.clone()
    other[1, :, 2] = 0.2
    other[1, :, 3, :4] = 0.2  # half of a frame
    found = frame_psnr(clip, other)
    half = 13.9794 + 3.0103
    torch.testing.assert_close(found[1], torch.tensor([120.0, 120.0, 13.9794, half]), rtol=0, atol=1e-3)
    torch.testing.assert_close(found[0], torch.full((4,), 120.0))
    torch.testing.assert_close(frame_psnr(clip[:, :, 2], other[:, :, 2]), found[:, 2])
    whole = -10 * math.log10(0.04 * 1.5 / 4)  # one frame and a half of four
    assert clip_psnr(clip, other).tolist() == pytest.approx([120, whole], abs=1e-3)
    counted = torch.zeros(1, 1, 4, 8, 6, dtype=torch.bool)
    counted[:, :, 2:, :4] = True
    assert clip_psnr(clip, other, counted).tolist() == pytest.approx([120, 13.9794], abs=1e-3)
    assert clip_psnr(clip, other, counted | True).tolist() == pytest.approx([120, whole], abs=1e-3)
    with pytest.raises(ValueError, match="got a clip of which no pixel counts"):
        clip_psnr(clip, other, counted & False)
    for measure in (frame_psnr, clip_psnr):
        with pytest.raises(ValueError, match="reconstruction: got shapes"):
            measure(clip, other[:1])


def test_pictures_are_compared_as_they_are_saved() -> None:
    scores = PixelScores(("psnr",))
    original = torch.full((1, 3, 12, 12), 0.5)
    scores.update(original, original + 0.4 / 255)  # both become the grey 128
    assert scores.metrics()["psnr"].value == pytest.approx(120)


def test_equal_pictures_are_left_out_among_others() -> None:
    """Their PSNR is infinite: counted as 120 dB, one of them moves the mean of ten by 10 dB."""
    scores, black = PixelScores(("psnr", "ssim")), torch.zeros(3, 3, 12, 12)
    scores.update(black, torch.stack((black[0] + 0.2, black[0], black[0] + 0.4)))
    found = scores.metrics(draws=10)
    assert found["psnr"].value == pytest.approx((13.9794 + 7.9588) / 2, abs=1e-3)
    assert (found["psnr"].count, found["psnr"].left_out, found["ssim"].left_out) == (2, 1, None)
    assert "1 of 3 pairs left out: equal, so infinite" in found["psnr"].note


def test_clips_count_frame_by_frame() -> None:
    clip = pictures(6, 0).unflatten(0, (2, 3)).transpose(1, 2)  # [2, 3, T, H, W]
    other = clip * 0.9
    frames, clips = PixelScores(), PixelScores()
    frames.update(clip.transpose(1, 2).flatten(0, 1), other.transpose(1, 2).flatten(0, 1))
    clips.update(clip, other)
    for name, found in clips.metrics().items():
        assert found.value == pytest.approx(frames.metrics()[name].value)
        assert found.count == 2
        assert frames.metrics()[name].count == 6


def test_lpips() -> None:
    """With random weights, as no network can be asked: the package's number, one a picture."""
    torch.manual_seed(0)
    network = Perceptual("squeeze", pretrained=False)
    a, b = pictures(3, 0, 32), pictures(3, 1, 32)
    scores = PixelScores(("lpips",), network)
    scores.update(a[:2], b[:2])
    scores.update(a[2:], b[2:])
    a, b = ((x * 255).round() / 255 for x in (a, b))
    with torch.no_grad():
        expected = network.lpips(a * 2 - 1, b * 2 - 1).flatten()
    torch.testing.assert_close(scores.values()["lpips"].float(), expected, rtol=1e-4, atol=1e-5)
    assert "squeezenet" in scores.metrics()["lpips"].note


def test_lpips_without_a_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def offline(*args: object, **kwargs: object) -> None:
        raise URLError("no route")

    monkeypatch.setattr("torch.hub.download_url_to_file", offline)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(ConnectionError) as error:
        perceptual_net("alex")
    assert str(error.value) == (
        f"cannot download the alex weights of LPIPS: put alexnet-owt-7be5be79.pth into {tmp_path / 'hub' / 'checkpoints'}, "
        "or leave lpips out of settings.metrics"
    )


def test_parts_of_several_processes() -> None:
    whole, first, second = PixelScores(), PixelScores(), PixelScores()
    a, b = pictures(5, 0), pictures(5, 1)
    whole.update(a, b)
    first.update(a[:3], b[:3])
    second.update(a[3:], b[3:])
    merged = PixelScores()
    merged.load({name: torch.cat((first.values()[name], second.values()[name])) for name in ("psnr", "ssim")})
    assert merged.metrics() == whole.metrics()


def test_use_of_codes() -> None:
    use = CodeUse(8)
    use.update(torch.tensor([[[0], [1]], [[2], [3]]]))
    use.update(torch.tensor([[[0], [1]], [[2], [3]]]))
    found = use.metrics()
    assert found["codebook_usage"].value == 0.5
    assert found["codebook_perplexity"].value == pytest.approx(4)
    assert found["codebook_usage"].count == 4
    assert found["codebook_usage"].note == "8 positions, 8 codes"
    large = CodeUse(1 << 18)
    large.update(torch.tensor([[[(1 << 18) - 1]]]))
    assert large.metrics()["codebook_perplexity"].value == 1


def test_mistakes() -> None:
    with pytest.raises(ValueError, match=r"measures: got \['psnrr'\], expected some of"):
        PixelScores(("psnrr",))
    with pytest.raises(ValueError, match="and for lpips its network"):
        PixelScores(("lpips",))
    with pytest.raises(ValueError, match=r"reconstruction: got shapes \(1, 3, 12, 12\) and \(1, 3, 16, 16\)"):
        PixelScores().update(pictures(1, 0, 12), pictures(1, 0, 16))
    with pytest.raises(ValueError, match="reconstruction: got no pairs"):
        PixelScores().metrics()
    with pytest.raises(ValueError, match="not empty"):
        CodeUse(4).metrics()
