"""ResNet-50 as a perceptual distance: what it compares, and what is said without its weights."""

import builtins
from pathlib import Path
from typing import Any
from urllib.error import URLError

import pytest
import torch
from torchvision import models

import maskgen.tokenizers.training.losses.perceptual
from maskgen.tokenizers.training.losses.perceptual import _BACKBONES, Perceptual, ResNetPerceptual, build_perceptual

MEAN, STD = (torch.tensor(v)[:, None, None] for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))


@pytest.mark.parametrize("logits", [False, True])
def test_it_is_the_squared_difference_of_torchvisions_network(logits: bool) -> None:
    perceptual = ResNetPerceptual(logits=logits, pretrained=False).train()
    network = models.resnet50(weights=None).eval()
    network.load_state_dict(perceptual.network.state_dict(), strict=False)
    if logits:
        network.fc.load_state_dict(perceptual.network.fc.state_dict())
    else:
        network.fc = torch.nn.Identity()
    a, b = torch.rand(2, 1, 3, 224, 224)
    with torch.no_grad():
        first, second = (network((image - MEAN) / STD) for image in (a, b))
        assert first.shape == (1, 1000 if logits else 2048)
        torch.testing.assert_close(perceptual(a, b), (first - second).square().mean())
        assert perceptual(a, a) == 0


def test_gradients_reach_the_prediction_and_nothing_else() -> None:
    perceptual = build_perceptual("resnet50", pretrained=False)
    a, b = (torch.rand(1, 3, 40, 24, requires_grad=True) for _ in range(2))
    perceptual(a, b).backward()
    assert a.grad is not None
    assert float(a.grad.abs().sum()) > 0
    assert b.grad is None
    assert all(weight.grad is None for weight in perceptual.parameters())
    with pytest.raises(ValueError, match="prediction and target: got shapes"):
        perceptual(a, b[:, :, :24])


def test_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        maskgen.tokenizers.training.losses.perceptual, "_load_lpips", lambda net, pretrained: torch.nn.Identity()
    )
    assert isinstance(build_perceptual("alex"), Perceptual)
    assert isinstance(build_perceptual("resnet50-logits", pretrained=False), ResNetPerceptual)
    with pytest.raises(
        ValueError, match="perceptual: got 'inception', expected one of vgg, .*resnet50-logits, or null"
    ):
        build_perceptual("inception")  # type: ignore[arg-type]


def test_without_its_weights(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def offline(*_: Any, **__: Any) -> None:
        raise URLError("no route to host")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    wanted = rf"put resnet50-0676ba61\.pth into {tmp_path}/checkpoints, or choose perceptual=None"
    with pytest.raises(ConnectionError, match=wanted):
        build_perceptual("resnet50")


@pytest.mark.parametrize("net", ["alex", "squeeze"])
def test_perceptual_distance(net: Any) -> None:
    perceptual = Perceptual(net, pretrained=False).train()
    assert not any(module.training for module in perceptual.modules())
    assert not any(weight.requires_grad for weight in perceptual.parameters())
    image = torch.rand(2, 3, 64, 64)
    other = torch.rand(2, 3, 64, 64, requires_grad=True)
    assert perceptual(image, image) == 0
    distance = perceptual(other, image)
    assert distance.shape == ()
    distance.backward()
    assert other.grad.abs().sum() > 0
    with pytest.raises(ValueError, match="expected equal ones"):
        perceptual(image, image[:1])


def test_perceptual_sees_minus_one_to_one(monkeypatch: pytest.MonkeyPatch) -> None:
    perceptual = Perceptual("squeeze", pretrained=False)
    seen: list[float] = []
    perceptual.lpips.forward = lambda *pair: seen.extend(x for t in pair for x in t.aminmax()) or pair[0]
    perceptual(torch.tensor([0.0, 1.0]), torch.tensor([0.25, 0.5]))
    assert seen == [-1, 1, -0.5, 0]


def test_perceptual_without_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    real_import = builtins.__import__

    def refuse(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "lpips":
            raise ImportError(name)
        return real_import(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(ImportError, match=r'pip install "maskgen\[train\]"'):
        Perceptual()


def test_named_files_are_those_that_torchvision_loads() -> None:
    from torchvision import models

    urls = {
        "vgg": models.VGG16_Weights.IMAGENET1K_V1.url,
        "alex": models.AlexNet_Weights.IMAGENET1K_V1.url,
        "squeeze": models.SqueezeNet1_1_Weights.IMAGENET1K_V1.url,
    }
    assert {net: url.rsplit("/", 1)[1] for net, url in urls.items()} == _BACKBONES


def test_perceptual_without_its_weights(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def offline(*_: Any, **__: Any) -> None:
        raise URLError("no route to host")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    wanted = rf"put squeezenet1_1-b8a52dc0\.pth into {tmp_path}/checkpoints, or choose perceptual=None"
    with pytest.raises(ConnectionError, match=wanted):
        Perceptual("squeeze")
    with pytest.raises(ValueError, match="net: got 'resnet', expected one of"):
        Perceptual("resnet")  # type: ignore[arg-type]
