"""A decoder trained alone: tokens keep their meaning, so what was trained on them goes with it."""

import dataclasses
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from maskgen.checkpoint import code_fingerprint, fingerprint, load_module
from maskgen.models.modern import ModernConfig, ModernTransformer
from maskgen.objectives.masked import MaskingSettings
from maskgen.tasks.pipeline import Pipeline
from maskgen.tasks.training.tokenizer import train_tokenizer
from maskgen.tasks.training.transformer import train_transformer
from maskgen.tokenizers.image.vqgan import VQGAN, VQGANConfig
from maskgen.tokenizers.quantizers.vector import QuantizerConfig
from maskgen.tokenizers.training.reconstruction import ReconstructionSettings
from maskgen.training.optim.optimizers import OptimizerSettings
from maskgen.training.settings import TrainSettings
from tests.toy_text import Sayings

CONFIG = VQGANConfig(
    channels=8,
    multipliers=(1, 2),
    res_blocks=1,
    groups=4,
    shortcut="input",
    quantizer=QuantizerConfig(codebook_size=16, dim=4),
)
LARGER = dataclasses.replace(CONFIG, decoder_channels=16, decoder_res_blocks=2)


def settings(steps: int) -> TrainSettings:
    never = {"validate_every": 0, "show_every": 0, "checkpoint_every": 0, "tracker": None}
    optimizer = OptimizerSettings(lr=3e-3, warmup_steps=1, weight_decay=0.1)
    return TrainSettings(optimizer=optimizer, steps=steps, batch_size=6, **never)  # type: ignore[arg-type]


def train(out: Path, config: VQGANConfig, steps: int = 20, **changes: Any) -> VQGAN:
    plain = {"loss": ReconstructionSettings(perceptual=None, gan_weight=0.0), "data": data(), "say": lambda text: None}
    train_tokenizer(tokenizer=VQGAN(config), settings=settings(steps), out=out, **{**plain, **changes})
    return load_module(out, VQGAN)


def data() -> Sayings:
    return Sayings(classes=False, captions=False)


def error(tokenizer: VQGAN, images: torch.Tensor) -> float:
    with torch.no_grad():
        tokens = tokenizer.encode(images)
        return float((tokenizer.decode(tokens, tokenizer.axes(images.shape)) - images).square().mean())


@pytest.mark.parametrize("config", [CONFIG, LARGER])
def test_tokens_stay_and_pictures_get_better(config: VQGANConfig, tmp_path: Path) -> None:
    before = train(tmp_path / "old", CONFIG)
    after = train(tmp_path / "new", config, steps=60, decoder_of=tmp_path / "old")
    images = data().train().batch(range(12), range(12))["images"]
    assert torch.equal(before.encode(images), after.encode(images))
    for part in ("encoder", "quantizer"):
        old, new = (getattr(one, part).state_dict() for one in (before, after))
        assert all(torch.equal(tensor, new[name]) for name, tensor in old.items())
    assert error(after, images) < error(before, images)
    assert fingerprint(after) != fingerprint(before)
    assert code_fingerprint(after) == code_fingerprint(before) == fingerprint(before)
    again = train(tmp_path / "newer", CONFIG, steps=2, decoder_of=tmp_path / "new")
    assert code_fingerprint(again) == fingerprint(before)


def test_it_goes_with_a_transformer_and_kept_tokens_of_the_old_one(tmp_path: Path) -> None:
    train(tmp_path / "old", CONFIG, steps=4)
    train(tmp_path / "new", LARGER, steps=4, decoder_of=tmp_path / "old")
    transformer = ModernTransformer(
        ModernConfig(vocab_size=16, num_classes=0, axes=(4, 4), width=16, layers=1, heads=2)
    )
    told: list[str] = []
    given = {"transformer": transformer, "data": data(), "masking": MaskingSettings(), "out": tmp_path / "model"}
    train_transformer(tokenizer=tmp_path / "old", settings=settings(2), say=told.append, **given)  # type: ignore[arg-type]
    written = (tmp_path / "model" / "tokens" / "train.safetensors").stat().st_mtime_ns
    train_transformer(tokenizer=tmp_path / "new", settings=settings(3), say=told.append, **given)  # type: ignore[arg-type]
    assert (tmp_path / "model" / "tokens" / "train.safetensors").stat().st_mtime_ns == written
    for name in ("config.json", "model.safetensors"):
        shutil.copy(tmp_path / "new" / name, tmp_path / "model" / "tokenizer" / name)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pipe = Pipeline.from_pretrained(tmp_path / "model", device="cpu")
    assert isinstance(pipe.tokenizer, VQGAN)
    assert pipe.tokenizer.config.decoder_channels == 16


@pytest.mark.parametrize(
    ("config", "changes", "message"),
    [
        (
            dataclasses.replace(CONFIG, channels=12),
            {},
            "tokenizer.channels: got 12, but encoder and codebook are those of",
        ),
        (
            dataclasses.replace(CONFIG, codes_of="x"),
            {"decoder_of": None},
            "tokenizer.codes_of: got one, but it is written",
        ),
        (
            CONFIG,
            {"loss": ReconstructionSettings(perceptual=None, gan_weight=0.0, revive_every=5)},
            "loss.revive_every: got 5, but with decoder_of the codebook stays",
        ),
    ],
)
def test_what_would_move_the_codes_is_refused(
    config: VQGANConfig, changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    train(tmp_path / "old", CONFIG, steps=1)
    with pytest.raises(ValueError, match=message):
        train(tmp_path / "new", config, **{"decoder_of": tmp_path / "old", **changes})
