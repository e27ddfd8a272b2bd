"""The second stage of a cascade: what it is shown, what it learns from that, and what does not fit."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from maskgen.checkpoint import save_module
from maskgen.models.context import CoarseConfig, ContextConfig
from maskgen.models.modern import ModernConfig, ModernTransformer
from maskgen.objectives.masked import MaskingSettings
from maskgen.tasks.data.tokens.cache import read_tokens
from maskgen.tasks.data.tokens.coarse import SmallPictures
from maskgen.tasks.model_folder import PipelineConfig
from maskgen.tasks.pipeline import Pipeline
from maskgen.tasks.training.transformer import train_transformer
from maskgen.tokenizers.image.toy import ToyTokenizer, ToyTokenizerConfig
from maskgen.training.optim.optimizers import OptimizerSettings
from maskgen.training.settings import TrainSettings
from tests.toy_text import Sayings

SMALL = ToyTokenizer(ToyTokenizerConfig(levels=7, patch=2))  # 4 x 4 pixels in 2 x 2 tokens


def coarse(vocab_size: int = 7, axes: tuple[int, ...] = (2, 2)) -> ContextConfig:
    return ContextConfig(every=1, coarse=CoarseConfig(vocab_size=vocab_size, axes=axes, layers=1))


def model(**changes: Any) -> ModernTransformer:
    sizes = {"vocab_size": 4, "num_classes": 0, "axes": (4, 4), "width": 32, "layers": 2, "heads": 2}
    return ModernTransformer(ModernConfig(**{**sizes, "context": coarse(), **changes}))


@pytest.fixture
def first(tmp_path: Path) -> Path:
    """A model of pictures of 4 x 4, and the tokenizer of the second stage beside it."""
    sizes = {"vocab_size": 7, "num_classes": 0, "axes": (2, 2), "width": 16, "layers": 1, "heads": 2}
    pipe = Pipeline(SMALL, ModernTransformer(ModernConfig(**sizes)), PipelineConfig(signal_size=(4, 4)), "cpu")
    pipe.save_pretrained(tmp_path / "first")
    save_module(ToyTokenizer(ToyTokenizerConfig(levels=4, patch=2)), tmp_path / "toy")
    return tmp_path / "first"


def train(first: Path, out: str = "out", steps: int = 3, **changes: Any) -> Path:
    optimizer = OptimizerSettings(lr=5e-3, warmup_steps=5, weight_decay=0.0)
    never = {"validate_every": 0, "show_every": 0, "checkpoint_every": 0, "tracker": None, "log_every": 10}
    plain = {
        "transformer": model(),
        "data": Sayings(classes=False, captions=False),
        "masking": MaskingSettings(label_smoothing=0.0),
        "settings": TrainSettings(optimizer=optimizer, steps=steps, batch_size=12, **never),  # type: ignore[arg-type]
        "coarse": first,
        "say": lambda text: None,
    }
    return train_transformer(tokenizer=first.parent / "toy", out=first.parent / out, **{**plain, **changes})


def test_it_is_shown_the_tokens_of_each_picture_made_smaller(first: Path) -> None:
    out = train(first, data=Sayings(captions=False), transformer=model(num_classes=3), views=2)
    truth = Sayings().train().batch(range(12), range(12))
    small = SmallPictures(SMALL, (4, 4))
    tokens = small.encode(truth["images"])
    assert torch.equal(SMALL.decode(tokens, (2, 2))[..., ::2, ::2] > 0, truth["images"][..., ::4, ::4] > 0)
    stored, _ = read_tokens(out / "tokens" / "train.safetensors")
    assert torch.equal(stored["coarse"].long(), tokens.repeat(2, 1, 1))
    pipe = Pipeline.from_pretrained(out, device="cpu")
    request = pipe.generation(truth["labels"].tolist(), {"steps": 1})
    seen = []
    for given in (tokens, tokens.flip(0)):
        cond = dataclasses.replace(request.cond, coarse=given)
        masked = torch.full((12, 16, 1), 4)
        seen.append(pipe.transformer(masked, cond))
        assert pipe.generate(dataclasses.replace(request, cond=cond)).shape == (12, 3, 8, 8)
    assert not torch.equal(*seen)
    assert Pipeline.from_pretrained(out / "coarse", device="cpu").axes == (2, 2)
    assert len(list((out / "transformer" / "samples").glob("samples-*.png"))) == 1


def test_area_means(first: Path) -> None:
    """Each pixel of a small picture is the mean of those it stands for."""
    picture = torch.arange(16.0).view(1, 1, 4, 4).expand(1, 3, 4, 4) / 16
    tokenizer = ToyTokenizer(ToyTokenizerConfig(levels=17, patch=1))
    tokens = SmallPictures(tokenizer, (2, 2)).encode(picture)
    expected = torch.tensor([[2.5, 4.5], [10.5, 12.5]]) / 16
    torch.testing.assert_close(tokenizer.decode(tokens, (2, 2))[0, 0], expected, atol=1 / 32, rtol=0)


def test_other_small_pictures_are_another_run(first: Path) -> None:
    train(first)
    other = Pipeline.from_pretrained(first, device="cpu")
    finer = ToyTokenizer(ToyTokenizerConfig(levels=5, patch=2))
    sizes = {**dataclasses.asdict(other.transformer.config), "vocab_size": 5, "context": ContextConfig()}
    Pipeline(finer, ModernTransformer(ModernConfig(**sizes)), other.config, "cpu").save_pretrained(
        first.parent / "other"
    )
    with pytest.raises(ValueError, match="holds another run"):
        train(first, coarse=first.parent / "other", transformer=model(context=coarse(5)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"coarse": None}, r"transformer: takes 4 tokens of a smaller grid .* name one: coarse: FOLDER"),
        ({"transformer": model(context=coarse(9))}, r"context.coarse has 9 codes on \(2, 2\), expected 7 on \(2, 2\)"),
        ({"transformer": model(context=coarse(7, (4, 1)))}, r"context.coarse has 7 codes on \(4, 1\), expected 7 on"),
        (
            {"transformer": model(context=ContextConfig())},
            r"context.coarse has 0 codes on \(\), expected 7 on \(2, 2\)",
        ),
    ],
)
def test_what_does_not_fit_is_refused(changes: dict[str, Any], message: str, first: Path) -> None:
    with pytest.raises(ValueError, match=message):
        train(first, **changes)
    assert not (first.parent / "out").exists()


def test_a_first_stage_of_larger_pictures_is_refused(first: Path) -> None:
    out = train(first)
    with pytest.raises(ValueError, match="got a model of pictures of 8 x 8 with 1 codebook.* of the shape of 8 x 8"):
        train(first, "second", coarse=out)
