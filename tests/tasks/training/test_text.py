"""Training on captions: it learns what they say, resumes exactly, drops them, and refuses what does not fit."""

import json
from pathlib import Path
from typing import Any

import pytest

from maskgen.checkpoint import save_module
from maskgen.models.context import ContextConfig
from maskgen.models.modern import ModernConfig, ModernTransformer
from maskgen.objectives.masked import MaskingSettings
from maskgen.sampling.settings import Sampling
from maskgen.tasks.commands.tokenize import ShardSettings, tokenize_data
from maskgen.tasks.conditions.text import TextEncoder
from maskgen.tasks.data.tokens.shards import TokenShards
from maskgen.tasks.image.generation import generate
from maskgen.tasks.media.images import to_tensor
from maskgen.tasks.pipeline import Pipeline
from maskgen.tasks.training.critic import train_critic
from maskgen.tasks.training.transformer import train_transformer
from maskgen.tokenizers.image.toy import ToyTokenizer, ToyTokenizerConfig
from maskgen.training.optim.optimizers import OptimizerSettings
from maskgen.training.run import Interrupted
from maskgen.training.settings import TrainSettings
from maskgen.training.trainer import Trainer
from tests.toy_text import Sayings, ToyText, ToyTextConfig

WIDTH = 16


def encoder(**changes: Any) -> ToyText:
    return ToyText(ToyTextConfig(**{"width": WIDTH, **changes}))


def model(**changes: Any) -> ModernTransformer:
    sizes = {"vocab_size": 4, "num_classes": 0, "axes": (4, 4), "width": 32, "layers": 2, "heads": 2}
    return ModernTransformer(ModernConfig(**{**sizes, "context": ContextConfig(width=WIDTH, every=1), **changes}))


def settings(**changes: Any) -> TrainSettings:
    optimizer = OptimizerSettings(lr=5e-3, warmup_steps=5, weight_decay=0.0, betas=(0.9, 0.98))
    plain = {"optimizer": optimizer, "steps": 4, "batch_size": 12, "log_every": 2, "tracker": None}
    never = {"validate_every": 0, "show_every": 0, "checkpoint_every": 0}
    return TrainSettings(**{**plain, **never, **changes})


def train(out: Path, **changes: Any) -> Path:
    save_module(ToyTokenizer(ToyTokenizerConfig(levels=4, patch=2)), out.parent / "toy")
    plain = {
        "transformer": model(),
        "data": Sayings(classes=False),
        "masking": MaskingSettings(label_smoothing=0.0),
        "settings": settings(),
        "sampling": Sampling(steps=4),
        "say": lambda text: None,
    }
    return train_transformer(tokenizer=out.parent / "toy", out=out, **{"text": encoder(), **plain, **changes})


def losses(out: Path) -> list[float]:
    lines = (out / "transformer" / "log.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["loss"] for line in lines if "loss" in json.loads(line)]


def test_it_learns_what_captions_say(tmp_path: Path) -> None:
    """One batch of twelve pictures that differ in what their captions say, until prompts bring them back."""
    text, said = encoder(), list[str]()
    masking = MaskingSettings(label_smoothing=0.0, label_dropout=0.0)
    told = {"masking": masking, "settings": settings(steps=250)}
    out = train(tmp_path / "out", text=text, views=2, say=said.append, **told)
    assert losses(out)[-1] < 0.05
    assert said[0] == "transformer: tokenizing 12 images, 2 view(s) each"
    assert said[1].startswith("text: encoding ")
    data = Sayings(classes=False)
    prompts, wanted = data.train().captions(range(12), range(12)), data.train().batch(range(12), range(12))["images"]
    pipe = Pipeline.from_pretrained(out, device="cpu")
    pictures = to_tensor(generate(pipe, prompt=prompts, seeds=range(12), sampling=Sampling(temperature=0.0)))
    assert (pictures - wanted).abs().mean() < 0.02
    shown = (out / "transformer" / "samples" / "captions.txt").read_text("utf-8").splitlines()
    assert shown == Sayings().test().captions(range(4), range(4))
    assert len(list((out / "transformer" / "samples").glob("samples-*.png"))) == 1


def test_each_caption_is_encoded_once(tmp_path: Path) -> None:
    text = encoder()
    train(tmp_path / "out", text=text, views=3)
    said = {Sayings().train().captions([index], [seed])[0] for index in range(12) for seed in range(20)}
    said |= {*Sayings().test().captions(range(4), range(4)), ""}
    shown = 4 + 1  # of the samples: the captions of four, and the empty prompt
    assert len(said) / 2 < text.calls <= len(said) + shown
    calls = text.calls
    train(tmp_path / "out", text=text, views=3)  # finished before
    assert text.calls == calls


def test_an_interrupted_run_goes_on_exactly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = train(tmp_path / "whole", settings=settings(steps=6, batch_size=4, log_every=1, checkpoint_every=2))
    real = Trainer._step

    def stop(self: Trainer, batches: Any, step: int, stats: Any) -> None:
        if step == 3:
            raise Interrupted("here")
        real(self, batches, step, stats)

    monkeypatch.setattr(Trainer, "_step", stop)
    told = settings(steps=6, batch_size=4, log_every=1, checkpoint_every=2)
    with pytest.raises(Interrupted):
        train(tmp_path / "parts", settings=told)
    monkeypatch.undo()
    parts = train(tmp_path / "parts", settings=told)
    assert losses(parts) == losses(whole)
    weights = [(folder / "transformer" / "model.safetensors").read_bytes() for folder in (parts, whole)]
    assert weights[0] == weights[1]


def test_classes_and_captions_together(tmp_path: Path) -> None:
    text = encoder(pooled=True)
    context = ContextConfig(width=WIDTH, pooled=WIDTH)
    out = train(tmp_path / "out", text=text, data=Sayings(), transformer=model(num_classes=3, context=context))
    assert Pipeline.from_pretrained(out, device="cpu").config.text_identity == text.identity()
    only = train(tmp_path / "pooled", text=text, transformer=model(context=ContextConfig(pooled=WIDTH)))
    assert Pipeline.from_pretrained(only, device="cpu").transformer.pooled_width == WIDTH


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"text": None}, "text: got no text encoder, but the data have captions"),
        (
            {"data": Sayings(classes=False, captions=False)},
            "text: got a text encoder, but the data have no captions; say where",
        ),
        ({"transformer": model(context=ContextConfig())}, "text: got an encoder, but ModernTransformer takes no text"),
        ({"text": encoder(width=8)}, "text: the encoder's context is 8, but ModernTransformer takes a width of 16"),
        (
            {"transformer": model(context=ContextConfig(pooled=4))},
            "the encoder's pooled is none, but .* takes a width of 4",
        ),
        (
            {"text": None, "data": Sayings(classes=False, captions=False)},
            r"transformer: got a ModernTransformer that takes a text \(context 16, pooled 0\), but there is no text encoder",
        ),
    ],
)
def test_what_does_not_fit_is_refused_before_work(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    said: list[str] = []
    with pytest.raises(ValueError, match=message):
        train(tmp_path / "out", say=said.append, **changes)
    assert said == []
    assert not (tmp_path / "out").exists()


def test_another_encoder_is_another_run(tmp_path: Path) -> None:
    train(tmp_path / "out")
    other = encoder(seed=1)
    with pytest.raises(ValueError, match="holds features of the text encoder ToyText"):
        train(tmp_path / "out", text=other)
    train(tmp_path / "out", text=other, again=True)
    assert Pipeline.from_pretrained(tmp_path / "out", device="cpu").config.text_identity == other.identity()


def test_token_shards_with_captions(tmp_path: Path) -> None:
    save_module(ToyTokenizer(ToyTokenizerConfig(levels=4, patch=2)), tmp_path / "toy")
    text, out = encoder(), tmp_path / "tokens"
    told = {"tokenizer": tmp_path / "toy", "data": Sayings(classes=False), "out": out, "say": lambda text: None}
    tokenize_data(ShardSettings(views=2), text=text, **told)  # type: ignore[arg-type]
    calls = text.calls
    train(tmp_path / "out", data=TokenShards(out), text=text)
    assert text.calls <= calls + 5  # those that are shown, and the empty prompt
    assert not (tmp_path / "out" / "tokens").exists()
    with pytest.raises(ValueError, match="text-00000.safetensors: holds features of the text encoder"):
        train(tmp_path / "other", data=TokenShards(out), text=encoder(seed=1), again=True)
    with pytest.raises(ValueError, match="name one, or set captions: false of the tokens"):
        train(tmp_path / "other", data=TokenShards(out), text=None)
    train(
        tmp_path / "plain", data=TokenShards(out, captions=False), text=None, transformer=model(context=ContextConfig())
    )


def test_a_critic_of_a_model_of_text(tmp_path: Path) -> None:
    out = train(tmp_path / "out", settings=settings(steps=2))
    # Our toy is not maskgen's own, but its module is imported.
    plain = {"data": Sayings(classes=False), "settings": settings(steps=2), "say": lambda text: None}
    for kind in ("separate", "self"):
        train_critic(model=out, out=tmp_path / kind, kind=kind, **plain)  # type: ignore[arg-type]
        assert isinstance(Pipeline.from_pretrained(tmp_path / kind, device="cpu").text, TextEncoder)
    assert Pipeline.from_pretrained(tmp_path / "separate", device="cpu").critic is not None
    with pytest.raises(
        ValueError, match=r"critic: takes a text of widths 0 and 0 \(context, pooled\), expected the model's 16"
    ):
        train_critic(model=out, out=tmp_path / "x", critic=model(context=ContextConfig()), **plain)  # type: ignore[arg-type]
    bare = {**plain, "data": Sayings(classes=False, captions=False)}
    with pytest.raises(ValueError, match="text: got a text encoder, but the data have no captions"):
        train_critic(model=out, out=tmp_path / "x", **bare)  # type: ignore[arg-type]
