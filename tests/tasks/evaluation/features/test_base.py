"""Extractors of features: Inception against torch-fidelity, any module, pixels, sound; what is said without weights."""

import os
from collections.abc import Iterator
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn
from torch_fidelity import calculate_metrics
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
from torch_fidelity.interpolate_compat_tensorflow import interpolate_bilinear_2d_like_tensorflow1x

from maskgen.tasks.data.base import modality_named
from maskgen.tasks.evaluation.features.base import (
    LogMelFeatures,
    ModuleFeatures,
    PixelFeatures,
    centred_features,
    pixel_features,
)
from maskgen.tasks.evaluation.features.extraction import Extraction, extract
from maskgen.tasks.evaluation.features.inception import InceptionFeatures
from maskgen.tasks.evaluation.features.protocols import PROTOCOLS, find_protocol, resize_images
from maskgen.tasks.evaluation.metrics.frechet import frechet_distance, kernel_distance
from maskgen.tasks.evaluation.sets.base import open_samples
from maskgen.tasks.evaluation.sets.processes import Processes
from tests.tasks.evaluation.support import single


@pytest.fixture(scope="module")
def inception(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A file as torch-fidelity's, with random weights: nobody can be asked for the real ones here."""
    path = tmp_path_factory.mktemp("inception") / "weights.pth"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("torch_fidelity.feature_extractor_inceptionv3.load_state_dict_from_url", lambda *a, **k: {})
        patch.setattr(nn.Module, "load_state_dict", lambda *a, **k: None)
        torch.manual_seed(0)
        network = FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], verbose=False)
    for module in network.modules():
        if isinstance(module, nn.Conv2d):  # keeps values near 1 through all layers
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
    torch.save(network.state_dict(), path)
    yield path
    path.unlink()


def folder_of_pictures(folder: Path, count: int, seed: int, side: int = 20) -> Path:
    generator = np.random.default_rng(seed)
    folder.mkdir()
    for number in range(count):
        small = generator.integers(0, 256, (5, 5, 3), dtype=np.uint8)
        picture = Image.fromarray(small).resize((side, side), Image.Resampling.BICUBIC)
        picture.save(folder / f"{number:03d}.png")
    return folder


def test_inception_is_torch_fidelitys(inception: Path) -> None:
    ours = InceptionFeatures(inception)
    theirs = FeatureExtractorInceptionV3(
        "inception-v3-compat", ["2048", "logits_unbiased"], feature_extractor_weights_path=str(inception)
    )
    images = torch.randint(0, 256, (2, 3, 24, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    found = ours.embed(resize_images(images, ours.input_size, "tf1-bilinear"))
    with torch.no_grad():
        features, logits = theirs(images)
    torch.testing.assert_close(found.features, features, rtol=1e-4, atol=1e-5)
    assert found.logits is not None
    torch.testing.assert_close(found.logits, logits, rtol=1e-4, atol=1e-4)
    assert ours.identity().startswith("inception-v3-2015-12-05-")
    with pytest.raises(ValueError, match=r"Inception: got shape \(2, 3, 24, 32\), expected \[B, 3, 299, 299\]"):
        ours.embed(images.float())


def test_fid_and_kid_equal_torch_fidelity_on_the_same_images(inception: Path, tmp_path: Path) -> None:
    """From files to numbers: their command and our engine, one extractor, 30 images a side, 64 features."""
    folders = [folder_of_pictures(tmp_path / name, 30, seed) for seed, name in enumerate(("made", "real"))]
    theirs = calculate_metrics(
        input1=str(folders[0]),
        input2=str(folders[1]),
        fid=True,
        kid=True,
        kid_subset_size=20,
        kid_subsets=10,
        cuda=False,
        cache=False,
        verbose=False,
        save_cpu_ram=True,
        feature_extractor="inception-v3-compat",
        feature_layer_fid="64",
        feature_layer_kid="64",
        feature_extractor_weights_path=str(inception),
    )
    extractor, team = InceptionFeatures(inception, layer="64"), Processes(single(), tmp_path / "parts")
    found = [
        extract(
            open_samples(folder, "image"),
            Extraction(extractor=extractor, resize="tf1-bilinear", team=team),
            folder.name,
        )
        for folder in folders
    ]
    ours = frechet_distance(found[0].gaussian, found[1].gaussian)
    assert ours == pytest.approx(theirs["frechet_inception_distance"], rel=1e-4)
    kernel = kernel_distance(found[0].features, found[1].features, subsets=10, size=20)
    assert kernel.value == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-3)


def test_weights_without_a_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def offline(*args: object, **kwargs: object) -> None:
        raise URLError("no route to host")

    monkeypatch.setattr("torch.hub.download_url_to_file", offline)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(ConnectionError) as error:
        InceptionFeatures()
    assert "\n" not in str(error.value)
    for part in ("put https://github.com/toshas/torch-fidelity/", "weights-inception-2015-12-05-6726825d.pth", "into"):
        assert part in str(error.value)
    assert f"{tmp_path / 'hub' / 'checkpoints'}, give the file as features.weights, or name other" in str(error.value)

    def login_page(*args: object, hash_prefix: str, **kwargs: object) -> None:
        raise RuntimeError(f'invalid hash value (expected "{hash_prefix}", got "abc")')

    monkeypatch.setattr("torch.hub.download_url_to_file", login_page)
    with pytest.raises(ConnectionError, match=r'expected "6726825d", got "abc"\)\): put https://github.com/toshas/'):
        InceptionFeatures()


def test_weights_in_the_cache_are_used(inception: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    place = tmp_path / "hub" / "checkpoints" / "weights-inception-2015-12-05-6726825d.pth"
    place.parent.mkdir(parents=True)
    os.link(inception, place)
    assert InceptionFeatures().identity() == InceptionFeatures(inception).identity()


def test_files_that_are_no_inception(tmp_path: Path) -> None:
    torch.save({"weight": torch.zeros(2)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match="not torch-fidelity's weights of Inception v3"):
        InceptionFeatures(tmp_path / "other.pth")
    torch.save({"weight": print}, tmp_path / "evil.pth")
    with pytest.raises(ValueError, match="refused: reading it would run code"):
        InceptionFeatures(tmp_path / "evil.pth")
    with pytest.raises(FileNotFoundError, match="no such file"):
        InceptionFeatures(tmp_path / "nowhere.pth")


@pytest.mark.parametrize("size", [(299, 299), (10, 31), (16, 20)])
def test_resize_of_tensorflow_1(size: tuple[int, int]) -> None:
    images = torch.randint(0, 256, (2, 3, 16, 20), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    expected = interpolate_bilinear_2d_like_tensorflow1x(images.float(), size, align_corners=False) / 255
    torch.testing.assert_close(resize_images(images, size, "tf1-bilinear"), expected, rtol=0, atol=1e-6)


def test_resize_of_clean_fid() -> None:
    """Pillow's bicubic filter on each channel as floats, clipped and not rounded, as in its release 0.1.35."""
    images = torch.zeros(1, 3, 12, 12, dtype=torch.uint8)
    images[:, 1, :, 6:] = 255
    found = resize_images(images, (30, 40), "pil-bicubic")
    channel = Image.fromarray(images[0, 1].numpy().astype(np.float32)).resize((40, 30), Image.Resampling.BICUBIC)
    assert np.array(channel).max() > 257  # it overshoots at the edge
    torch.testing.assert_close(found[0, 1] * 255, torch.from_numpy(np.array(channel).clip(0, 255)))
    assert len(found[0, 1].unique()) > 3
    assert found[0, 0].abs().max() == 0
    assert resize_images(images, None, "pil-bicubic").shape == (1, 3, 12, 12)


def test_protocols() -> None:
    assert set(PROTOCOLS) == {"adm", "clean-fid", "torch-fidelity"}
    assert find_protocol("adm").split_size == 5000
    assert find_protocol("clean-fid").resize == "pil-bicubic"
    with pytest.raises(ValueError, match="protocol: got 'fid', expected one of adm, clean-fid, torch-fidelity"):
        find_protocol("fid")


class Net(nn.Module):
    """A network somebody brings along."""

    def __init__(self, width: int = 3) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x).mean((2, 3), keepdim=True)


class Other(Net):
    """Returns what it was built with."""

    def __init__(self, returned: object) -> None:
        super().__init__()
        self.returned = returned

    def forward(self, x: Tensor) -> Tensor:
        return self.returned  # type: ignore[return-value]


def test_any_module(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net, images = Net(), torch.rand(4, 3, 6, 6)
    save_file(net.state_dict(), tmp_path / "net.safetensors")
    torch.manual_seed(1)
    features = ModuleFeatures(Net(), tmp_path / "net.safetensors", mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
    with torch.no_grad():
        expected = net((images - 0.5) / 0.25).flatten(1)
    torch.testing.assert_close(features.embed(images).features, expected)
    assert features.embed(images).logits is None
    same = ModuleFeatures(net, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
    assert features.identity() == same.identity()
    assert ModuleFeatures(net).identity() != same.identity()
    torch.manual_seed(2)
    assert ModuleFeatures(Net()).identity() != ModuleFeatures(net).identity()
    with pytest.raises(ValueError, match=r"2 weights do not fit: layer\.bias has shape \(3,\), expected \(5,\)"):
        ModuleFeatures(Net(5), tmp_path / "net.safetensors")
    with pytest.raises(ValueError, match="expected a sample rate for audio and for nothing else"):
        ModuleFeatures(net, modality="audio")
    pair = ModuleFeatures(Other((torch.ones(4, 5, 1), torch.zeros(4, 2)))).embed(images)
    assert pair.logits is not None
    assert (pair.features.shape, pair.logits.shape) == ((4, 5), (4, 2))
    with pytest.raises(
        TypeError, match="Other: returned dict, expected a tensor of features, or a pair of features and"
    ):
        ModuleFeatures(Other({})).embed(images)


def test_modalities_by_name() -> None:
    assert [modality_named(name) for name in ("image", "video", "audio")] == ["image", "video", "audio"]
    with pytest.raises(ValueError, match="modality: got 'smell', expected image, video or audio"):
        modality_named("smell")


def test_pixels() -> None:
    images = torch.zeros(2, 3, 16, 16)
    images[0, :, :2, :2] = 1  # one cell of 8 x 8
    images[1, 0, 2:4, 4:6] = 1  # one cell, one channel
    features = pixel_features(images)
    assert features.shape == (2, 64)
    assert features.dtype == np.float64
    assert (features[0, 0], features[0].sum()) == (1, 1)
    assert features[1, 8 + 2] == pytest.approx(1 / 3)
    assert features[1].sum() == pytest.approx(1 / 3)
    assert pixel_features(images, side=4).shape == (2, 16)
    assert PixelFeatures(4, colour=True).embed(images).features.shape == (2, 48)
    assert PixelFeatures(4).identity() == "pixels-4x4-grey"
    with pytest.raises(ValueError, match="side: got 0"):
        PixelFeatures(0)


def test_centred_features() -> None:
    """What moves over black gives the same features wherever it is, cut out around the middle of its light."""
    shape = torch.rand(6, 4, generator=torch.Generator().manual_seed(0)) * 0.8 + 0.2
    frames = torch.zeros(3, 3, 24, 32)
    for frame, (top, left) in zip(frames, ((2, 3), (10, 20), (17, 27)), strict=True):
        frame[:, top : top + 6, left : left + 4] = shape
    found = centred_features(frames, 8)
    assert found.shape == (3, 16)
    np.testing.assert_allclose(found[1], found[0], atol=1e-5)
    np.testing.assert_allclose(found[2], found[0], atol=1e-5)
    assert found[0].sum() * 4 == pytest.approx(float(shape.sum()), rel=1e-4)
    faint = centred_features(frames + 0.05 * (frames == 0), 8)
    np.testing.assert_allclose(faint, found, atol=1e-5)  # a glow does not count
    wide = torch.zeros(1, 3, 16, 16)
    wide[:, :, 4:8, 6:10] = 1
    assert centred_features(wide, 4).tolist() == [[1, 1, 1, 1]]


def test_sound() -> None:
    """A tone is loud in its band, at the level of its amplitude; each window makes a vector."""
    features = LogMelFeatures(8000, bands=32, window=0.5)
    time = torch.arange(3 * 4000 + 1000) / 8000
    tone = torch.sin(2 * torch.pi * 1000 * time)[None, None]
    found = features.embed(tone).features
    assert found.shape == (3, 64)  # the rest is shorter than half a window
    assert features.embed(torch.cat((tone, tone[..., :1500]), dim=2)).features.shape == (4, 64)
    quiet = features.embed(0.1 * tone).features
    loudest = int(found[1, :32].argmax())
    assert 0.5 < float(found[1, loudest] - quiet[1, loudest]) / 20 < 1.01
    assert float(found[1, loudest] - quiet[1, loudest]) == pytest.approx(20, abs=0.1)
    assert float(features.embed(torch.zeros(1, 1, 4000)).features[0, :32].max()) == pytest.approx(-80)
    assert features.identity() == "log-mel-32-moments-8000-0.5s"
    both = features.embed(torch.cat((tone, 0.1 * tone)))
    torch.testing.assert_close(both.features, torch.cat((found, quiet)))
    with pytest.raises(ValueError, match="LogMelFeatures: got 10 Hz"):
        LogMelFeatures(10)
