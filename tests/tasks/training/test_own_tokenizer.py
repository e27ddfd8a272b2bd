"""A tokenizer of the user's own, in a module of its own, trained from the command line: by our objective and by its own."""

import json
import sys
from pathlib import Path

import pytest

from maskgen.checkpoint import load_module
from maskgen.tokenizers.base import Tokenizer
from tests.tasks.commandline import refused, run

SHORT = (
    *("--settings.steps", 3, "--settings.batch_size", 4, "--settings.log_every", 1, "--settings.tracker", "null"),
    *("--settings.validate_every", 0, "--settings.show_every", 0, "--settings.checkpoint_every", 0),
)

MODULE = '''
"""Patches of pixels through one linear layer and a codebook."""

import dataclasses

import torch
from torch import nn

from maskgen.data import TensorSource
from maskgen.tasks.data import SignalData
from maskgen.tokenizers.base import Tokenizer
from maskgen.tokenizers.image.base import ImageTokenizer
from maskgen.tokenizers.quantizers.vector import QuantizerConfig, build_quantizer
from maskgen.training.objective import Objective


@dataclasses.dataclass(frozen=True)
class PatchConfig:
    patch: int = 2
    codes: int = 16


@dataclasses.dataclass
class Pass:
    reconstruction: torch.Tensor
    quantized: object


class Patches(ImageTokenizer):
    def __init__(self, config: PatchConfig) -> None:
        super().__init__()
        self.config = config
        self.into = nn.Conv2d(3, 4, config.patch, stride=config.patch)
        self.quantizer = build_quantizer(QuantizerConfig(codebook_size=config.codes, dim=4))
        self.out = nn.ConvTranspose2d(4, 3, config.patch, stride=config.patch)

    vocab_size = property(lambda self: self.config.codes)
    stride = property(lambda self: (self.config.patch, self.config.patch))
    num_codebooks = 1

    def encode(self, signal):
        return self.quantizer.encode(self.into(signal))

    def decode(self, tokens, axes):
        return self.out(self.quantizer.lookup(tokens, axes))

    def forward(self, signal):
        quantized = self.quantizer(self.into(signal))
        return Pass(self.out(quantized.latents), quantized)


class Unfinished(ImageTokenizer):
    def encode(self, signal):
        return signal


@dataclasses.dataclass(frozen=True, kw_only=True)
class OddLoss:
    weight: float = 1.0

    def objective(self, model, size, *, held_out=None, show=None):
        assert tuple(size) == (6,) and show is None
        return OddTraining(model, self.weight)


class OddTraining(Objective):
    def __init__(self, model, weight):
        super().__init__(model)
        self.weight = weight

    def loss(self, network, modules, batch, step):
        return self.weight * (modules["model"].scale - batch["readings"].mean()) ** 2, {}

    def units(self, batch):
        return batch["readings"].numel()


class Readings(Tokenizer):
    """Weather, say: a modality that maskgen has never heard of."""

    modality, is_spatial, training_loss = "weather", True, OddLoss

    def __init__(self, config: PatchConfig) -> None:
        super().__init__()
        self.config, self.scale = config, nn.Parameter(torch.zeros(()))

    vocab_size, num_codebooks, stride = 16, 1, (1,)

    def axes(self, signal_shape):
        return tuple(signal_shape[2:])

    def encode(self, signal):
        return (signal * 15).round().long().transpose(1, 2)

    def decode(self, tokens, axes):
        return tokens.transpose(1, 2) / 15

    def forward(self, signal):
        return signal * self.scale


class Untrained(Readings):
    training_loss = ""


class Weather(SignalData):
    modality, key, size, class_names = "weather", "readings", (6,), ()

    def train(self):
        return TensorSource(readings=torch.rand(8, 1, 6, generator=torch.Generator().manual_seed(0)))

    def test(self):
        return None
'''


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Name of the user's module, importable from the folder that is worked in."""
    name = f"mine_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(MODULE, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return name


def test_by_the_objective_of_its_modality(module: str) -> None:
    words = ("train", "tokenizer", "--tokenizer", f"{module}.Patches", "--tokenizer.config.codes", 8)
    data = ("--data", "Digits", "--data.size", 8)
    run(*words, *data, "--loss.perceptual", "null", "--loss.gan_weight", 0, *SHORT, "--out", "out")
    trained = load_module(Path("out"), Tokenizer)  # type: ignore[type-abstract]
    assert (type(trained).__name__, trained.vocab_size) == ("Patches", 8)
    line = json.loads(Path("out/log.jsonl").read_text(encoding="utf-8").splitlines()[0])
    assert {"pixel", "q_latent", "codebook_usage"} <= line.keys()
    assert list(Path("out/samples").iterdir())
    assert json.loads(Path("out/run.json").read_text(encoding="utf-8"))["tokenizer"]["class"] == "Patches"


def test_a_modality_and_an_objective_of_ones_own(module: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("train", "tokenizer", "--data", f"{module}.Weather", *SHORT, "--tokenizer")
    run(*words, f"{module}.Readings", "--loss.weight", 2.5, "--settings.optimizer.lr", 0.1, "--out", "out")
    assert "loss" in json.loads(Path("out/log.jsonl").read_text(encoding="utf-8").splitlines()[0])
    assert json.loads(Path("out/run.json").read_text(encoding="utf-8"))["loss"] == {"weight": 2.5}
    assert not Path("out/samples").exists()
    line = refused(capsys, *words, f"{module}.Readings", "--loss.pixel", "l1", "--out", "other")
    assert "--loss.pixel" in line
    line = refused(capsys, *words, f"{module}.Untrained", "--out", "other")
    assert "Untrained is of modality 'weather', which has no training; name one in Untrained.training_loss" in line


def test_what_lacks_a_member_is_refused_by_its_name(module: str, capsys: pytest.CaptureFixture[str]) -> None:
    line = refused(
        capsys, "train", "tokenizer", "--tokenizer", f"{module}.Unfinished", "--data", "Digits", "--out", "out"
    )
    assert "Unfinished: vocab_size, num_codebooks, stride, decode missing from the contract of a tokenizer; add" in line
    assert "decode(self, tokens, axes) -> Tensor" in line
    line = refused(capsys, "train", "tokenizer", "--tokenizer", "ToyTokenizer", "--data", "Digits", "--out", "out")
    assert "ToyTokenizer has no forward to train; add forward(signal)" in line
    assert not Path("out").exists()
    assert module in sys.modules


def test_former_names_say_the_new_ones(capsys: pytest.CaptureFixture[str]) -> None:
    assert refused(capsys, "train", "codec", "--out", "out").endswith(
        "is `maskgen train tokenizer --tokenizer AudioCodec` now"
    )
    assert "`maskgen train tokenizer --tokenizer VQ3D` now" in refused(capsys, "train", "video-tokenizer")
    words = ("train", "critic", "--model", "m", "--out", "out", "--data", "Digits")
    assert "judging: this option is called critic_settings now" in refused(capsys, *words, "--judging", "{weight: 2}")
