"""Training on sound: the codec, one transformer or two, tokens kept on disk, what is refused, resumed and shown.

Shapes: B batch, S samples, T frames, K codebooks.
"""

import json
import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from maskgen.checkpoint import load_module, save_module
from maskgen.data import Batch, Source, TensorSource, draw_numbers
from maskgen.models.modern import ModernConfig, ModernTransformer
from maskgen.objectives.masked import MaskedModeling, MaskingSettings
from maskgen.published.vampnet.blocks import VampNetConfig
from maskgen.published.vampnet.transformer import VampNetTransformer
from maskgen.sampling.settings import Sampling
from maskgen.tasks.conditions.request import Request
from maskgen.tasks.data.audio.melodies import Melodies
from maskgen.tasks.data.base import AudioData
from maskgen.tasks.data.tokens.cache import cached_tokens, tokenize
from maskgen.tasks.media.audio.files import load_sound
from maskgen.tasks.pipeline import Pipeline
from maskgen.tasks.training.shown import show_reconstructions
from maskgen.tasks.training.tokenizer import train_tokenizer
from maskgen.tasks.training.transformer import train_transformer
from maskgen.tokenizers.audio.codec import AudioCodec, AudioCodecConfig
from maskgen.tokenizers.audio.toy import ToyAudioTokenizer, ToyAudioTokenizerConfig
from maskgen.tokenizers.training.audio import CodecLossSettings, CodecTraining
from maskgen.training.optim.optimizers import OptimizerSettings
from maskgen.training.run import Interrupted
from maskgen.training.settings import TrainSettings
from tests.tasks.training.test_image import Squares

RATE, SAMPLES, HOP, V = 800, 62, 4, 8
FRAMES = -(-SAMPLES // HOP)
CODEC = AudioCodecConfig(
    sample_rate=RATE,
    hop=4,
    width=4,
    encoder_dilations=(1,),
    decoder_dilations=(1,),
    codebook_size=8,
    codebooks=2,
    dim=4,
)
LOSS = CodecLossSettings(windows=(32, 16), bands=(4, 4))


class Tones(AudioData):
    """Sines in memory, each of another pitch; two classes if wanted. Counts how many examples are asked for."""

    def __init__(self, count: int = 6, rate: int = RATE, labels: bool = False, shift: float = 0.0) -> None:
        self.sample_rate, self.channels, self.size, self.count, self.labels = rate, 1, (SAMPLES,), count, labels
        time = torch.arange(SAMPLES) / RATE
        sounds = torch.stack([torch.sin((20.0 + shift + 9 * n) * 6.283 * time) * 0.8 for n in range(count)])[:, None]
        kept = {"audio": sounds} | ({"labels": torch.arange(count) % 2} if labels else {})
        self._source, self._asked = TensorSource(**kept), [0]

    @property
    def class_names(self) -> tuple[str, ...]:
        return ("low", "high") if self.labels else ()

    @property
    def asked(self) -> int:
        return self._asked[0]

    def train(self) -> Source:
        return _Counted(self._source, self._asked)

    def test(self) -> Source | None:
        return self._source


class Untested(Tones):
    """Without held-out sounds."""

    def test(self) -> None:
        return None


class _Counted:
    def __init__(self, source: Source, asked: list[int]) -> None:
        self.source, self._asked = source, asked

    def __len__(self) -> int:
        return len(self.source)

    def batch(self, indices: Sequence[int], seeds: Sequence[int]) -> Batch:
        self._asked[0] += len(indices)
        return self.source.batch(indices, seeds)


def settings(**changes: Any) -> TrainSettings:
    optimizer = OptimizerSettings(lr=3e-3, warmup_steps=1, weight_decay=0.0, betas=(0.9, 0.98))
    never = {"validate_every": 0, "show_every": 0, "checkpoint_every": 0, "tracker": None}
    plain = {"optimizer": optimizer, "steps": 4, "batch_size": 6, "log_every": 2}
    return TrainSettings(**{**plain, **never, **changes})


def model(codebooks: int = 3, **changes: Any) -> ModernTransformer:
    sizes = {"vocab_size": V, "num_codebooks": codebooks, "num_classes": 0, "axes": (FRAMES,), "width": 16}
    return ModernTransformer(ModernConfig(**{**sizes, "layers": 1, "heads": 2, **changes}))


def toy(folder: Path, **changes: Any) -> Path:
    sizes = {"sample_rate": RATE, "codebooks": 3, "levels": V, "hop": HOP, **changes}
    save_module(ToyAudioTokenizer(ToyAudioTokenizerConfig(**sizes)), folder)
    return folder


def stage1(out: Path, **changes: Any) -> Path:
    plain = {"tokenizer": AudioCodec(CODEC), "data": Tones(), "loss": LOSS, "settings": settings(), "say": _ignore}
    return train_tokenizer(out=out, **{**plain, **changes})


def stage2(tokenizer: Path, out: Path, **changes: Any) -> Path:
    plain = {"data": Tones(), "masking": MaskingSettings(label_smoothing=0.0), "settings": settings(), "say": _ignore}
    chosen = {"transformer": model(), "sampling": Sampling(steps=2), **plain, **changes}
    return train_transformer(tokenizer=tokenizer, out=out, **chosen)


def fine(tokenizer: Path, out: Path, **changes: Any) -> Path:
    plain = {"stage": "fine", "masking": MaskingSettings(label_smoothing=0.0, visible_codebooks=1)}
    return stage2(tokenizer, out, **{**plain, "sampling": Sampling(steps=1), **changes})


def _ignore(text: str) -> None:
    pass


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_codec_and_transformer_make_a_model(tmp_path: Path) -> None:
    said: list[str] = []
    assert stage1(tmp_path / "tokenizer", say=said.append) == tmp_path / "tokenizer"
    sizes = {"vocab_size": 8, "codebooks": 2}
    stage2(tmp_path / "tokenizer", tmp_path, transformer=model(**sizes), say=said.append)
    assert said == ["transformer: tokenizing 6 sounds, 1 view(s) each"]
    shown = tmp_path / "tokenizer" / "samples"
    numbers = range(4)
    assert names(shown) == {f"sound-{n}-{what}.wav" for n in numbers for what in ("original", "00000004")}
    kept = Tones().test()
    assert kept is not None
    found, rate = load_sound(shown / "sound-1-original.wav")
    assert rate == RATE
    second = draw_numbers(len(kept), 4)[1]  # what is shown is drawn over all that are held out
    torch.testing.assert_close(found, kept.batch([second], [second])["audio"][0], atol=2**-15, rtol=0)
    assert load_sound(shown / "sound-1-00000004.wav")[0].shape == (1, SAMPLES)
    assert names(tmp_path / "transformer" / "samples") == {
        f"sound-{n}-{what}.wav" for n in range(2) for what in ("original", "00000004")
    }
    pipe = Pipeline.from_pretrained(tmp_path, device="cpu")
    assert (pipe.modality, pipe.axes, pipe.config.sampling) == ("audio", (FRAMES,), Sampling(steps=2))
    assert pipe.config.tokenizer_identity == load_module(tmp_path / "tokenizer", AudioCodec).identity()
    before, again = (tmp_path / "pipeline.json").stat().st_mtime_ns, []
    stage1(tmp_path / "tokenizer", say=again.append)
    stage2(tmp_path / "tokenizer", tmp_path, transformer=model(**sizes), say=again.append)
    assert [line.split(",")[0] for line in again] == ["tokenizer: finished before", "transformer: finished before"]
    assert (tmp_path / "pipeline.json").stat().st_mtime_ns == before


def test_a_codec_for_other_sounds_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"data: got 900 Hz and 1 channel\(s\), but the codec has 800 Hz and 1; set"):
        stage1(tmp_path / "out", data=Tones(rate=900))
    assert not (tmp_path / "out").exists()


def test_an_interrupted_codec_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stage1(tmp_path / "whole", settings=settings(steps=5))
    _interrupt(monkeypatch, CodecTraining, 2, lambda: stage1(tmp_path / "parts", settings=settings(steps=5)))
    with pytest.raises(ValueError, match=r"holds another run \(settings\.steps: 5 before, 4 now\); give --again"):
        stage1(tmp_path / "parts", settings=settings(steps=4))
    stage1(tmp_path / "parts", settings=settings(steps=5))
    whole, parts = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "parts"))
    assert whole == parts


def _interrupt(monkeypatch: pytest.MonkeyPatch, kind: Any, step: int, train: Any) -> None:
    """Send Ctrl-C to this process in the middle of one step."""
    real = kind.loss

    def loss(self: Any, network: str, modules: Any, batch: Any, at: int) -> Any:
        if at == step:
            os.kill(os.getpid(), signal.SIGINT)
        return real(self, network, modules, batch, at)

    with monkeypatch.context() as patch:
        patch.setattr(kind, "loss", loss)
        with pytest.raises(Interrupted):
            train()


def test_two_transformers(tmp_path: Path) -> None:
    tokenizer, out, data = toy(tmp_path / "toy"), tmp_path / "model", Tones()
    stage2(tokenizer, out, transformer=model(1), codebooks=1, data=data)
    assert Pipeline.from_pretrained(out, device="cpu").fine is None
    coarse = (out / "transformer" / "model.safetensors").read_bytes()
    asked, said = data.asked, []
    fine(tokenizer, out, data=data, say=said.append)
    assert said == ["fine transformer: tokenizing 6 sounds, 1 view(s) each"]
    assert (
        data.asked <= asked + 3
    )  # the tokens of the coarse stage served again; three sounds tell that they are the same
    pipe = Pipeline.from_pretrained(out, device="cpu")
    assert pipe.fine is not None
    assert (pipe.transformer.num_codebooks, pipe.fine.num_codebooks) == (1, 3)
    assert (pipe.config.sampling, pipe.config.fine_sampling) == (Sampling(steps=2), Sampling(steps=1))
    assert (out / "transformer" / "model.safetensors").read_bytes() == coarse
    fine(tokenizer, out, data=data, say=said.append)
    stage2(tokenizer, out, transformer=model(1), codebooks=1, data=data, say=said.append)
    assert [line.split(",")[0] for line in said[1:]] == [
        "fine transformer: finished before",
        "transformer: finished before",
    ]
    tokens = pipe.encode(torch.zeros(1, 1, SAMPLES))
    mask = torch.ones_like(tokens, dtype=torch.bool)
    assert pipe.fill(tokens, mask, Request(seeds=[0], sampling=Sampling(steps=2))).shape == (1, FRAMES, 3)


def test_the_fine_stage_refuses(tmp_path: Path) -> None:
    tokenizer, out = toy(tmp_path / "toy"), tmp_path / "model"
    with pytest.raises(FileNotFoundError, match=r"holds no model yet; train the coarse transformer into it first"):
        fine(tokenizer, out)
    assert not out.exists()
    stage2(tokenizer, out, transformer=model(1), codebooks=1)
    with pytest.raises(ValueError, match=r"masking\.visible_codebooks: got 2, expected 1: the codebooks that the"):
        fine(tokenizer, out, masking=MaskingSettings(visible_codebooks=2))
    with pytest.raises(
        ValueError, match="codebooks: got 2, but a fine transformer has all 3 of the codec; leave it out"
    ):
        fine(tokenizer, out, codebooks=2)
    with pytest.raises(ValueError, match="num_codebooks is 2, expected 3"):
        fine(tokenizer, out, transformer=model(2))
    other = toy(tmp_path / "other", hop=2)
    with pytest.raises(
        ValueError, match=r"got ToyAudioTokenizer-800-2-\w+, but the transformer was trained on .*-800-4-"
    ):
        fine(other, out, transformer=model(3, axes=(31,)))
    assert not (out / "fine").exists()
    stage2(tokenizer, tmp_path / "whole")
    with pytest.raises(ValueError, match="has all 3 codebooks of the codec; there is nothing left to add"):
        fine(tokenizer, tmp_path / "whole")


def test_the_wrong_number_of_codebooks(tmp_path: Path) -> None:
    tokenizer = toy(tmp_path / "toy")
    for codebooks in (0, 4):
        with pytest.raises(ValueError, match=f"codebooks: got {codebooks}, expected 1 to 3, the codec's"):
            stage2(tokenizer, tmp_path / "out", codebooks=codebooks)
    with pytest.raises(ValueError, match="num_codebooks is 3, expected 2"):
        stage2(tokenizer, tmp_path / "out", codebooks=2)
    with pytest.raises(ValueError, match="num_codebooks is 2, expected 3; axes is"):
        stage2(tokenizer, tmp_path / "out", transformer=model(2, axes=(9,)))
    assert not (tmp_path / "out").exists()


def test_data_of_another_kind(tmp_path: Path) -> None:
    tokenizer = toy(tmp_path / "toy")
    with pytest.raises(ValueError, match=r"data: got 900 Hz and 1 channel\(s\), but the codec has 800 Hz and 1"):
        stage2(tokenizer, tmp_path / "out", data=Tones(rate=900))
    with pytest.raises(ValueError, match="data: got image data, but the tokenizer's modality is audio"):
        stage2(tokenizer, tmp_path / "out", data=Squares())
    with pytest.raises(FileNotFoundError, match=r"which holds none .*name a folder made by `maskgen train tokenizer`"):
        stage2(tmp_path / "nowhere", tmp_path / "out")
    with pytest.raises(ValueError, match="num_classes is 0, expected 2"):
        stage2(tokenizer, tmp_path / "out", data=Tones(labels=True))
    assert not (tmp_path / "out").exists()


def test_sounds_with_classes_and_without_a_test_half(tmp_path: Path) -> None:
    stage2(toy(tmp_path / "toy"), tmp_path, data=Tones(labels=True), transformer=model(num_classes=2))
    assert Pipeline.from_pretrained(tmp_path, device="cpu").config.class_names == ("low", "high")
    stage2(tmp_path / "toy", tmp_path / "untested", data=Untested())
    assert not (tmp_path / "untested" / "transformer" / "best").exists()
    assert names(tmp_path / "untested" / "tokens") == {"train.safetensors"}


def test_an_interrupted_run_does_not_tokenize_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer, data = toy(tmp_path / "toy"), Tones(count=9)
    chosen = {"data": data, "views": 3, "transformer": model(dropout=0.1), "settings": settings(steps=5)}
    stage2(tokenizer, tmp_path / "whole", **chosen)
    once = data.asked
    _interrupt(monkeypatch, MaskedModeling, 2, lambda: stage2(tokenizer, tmp_path / "parts", **chosen))
    assert data.asked == 2 * once
    stage2(tokenizer, tmp_path / "parts", **chosen)
    assert data.asked == 2 * once + 3  # only the sounds that tell whether the tokens are still theirs
    whole, parts = ((tmp_path / name / "transformer/model.safetensors").read_bytes() for name in ("whole", "parts"))
    assert whole == parts


def test_tokens_on_disk(tmp_path: Path) -> None:
    path, data = tmp_path / "tokens.safetensors", Tones(labels=True)
    first = load_module(toy(tmp_path / "toy"), ToyAudioTokenizer)
    plain = tokenize(data.train(), first, key="audio", views=2)
    for _ in range(2):  # made, then read
        found = cached_tokens(data.train(), first, path, key="audio", views=2)
        assert found.tensors.keys() == {"tokens", "labels"}
        for name, tensor in plain.tensors.items():
            assert found.tensors[name].dtype == torch.long
            assert torch.equal(found.tensors[name], tensor)
    written = path.read_bytes()
    for changes in ({"views": 1}, {"seed": 5}):  # another request of the same codec: made anew
        cached_tokens(data.train(), first, path, key="audio", **{"views": 2, **changes})
        assert path.read_bytes() != written
    shifted = Tones(labels=True, shift=1.0)
    found = cached_tokens(shifted.train(), first, path, key="audio", views=2)
    assert torch.equal(
        found.tensors["tokens"], tokenize(shifted.train(), first, key="audio", views=2).tensors["tokens"]
    )
    kept = path.read_bytes()
    other = load_module(toy(tmp_path / "other", sample_rate=RATE + 1), ToyAudioTokenizer)
    with pytest.raises(ValueError, match=r"holds tokens of ToyAudioTokenizer-800-4-\w+, but this one is Toy"):
        cached_tokens(data.train(), other, path, key="audio")
    assert path.read_bytes() == kept
    path.write_bytes(kept[:20])
    with pytest.raises(ValueError, match=r"tokens\.safetensors: truncated or not a file of tokens .*; delete it"):
        cached_tokens(data.train(), first, path, key="audio")


def test_vampnets_transformer_gets_the_codecs_vectors(tmp_path: Path) -> None:
    config = VampNetConfig(vocab_size=V, num_codebooks=3, code_width=1, axes=(FRAMES,), width=8, layers=1, heads=2)
    stage2(toy(tmp_path / "toy"), tmp_path, transformer=VampNetTransformer(config))
    pipe = Pipeline.from_pretrained(tmp_path, device="cpu")
    assert isinstance(pipe.tokenizer, ToyAudioTokenizer)
    assert torch.equal(pipe.transformer.state_dict()["code_tables"], pipe.tokenizer.code_tables())
    description = json.loads((tmp_path / "transformer" / "run.json").read_text(encoding="utf-8"))
    assert description["transformer"]["class"] == "VampNetTransformer"


def test_it_learns(tmp_path: Path) -> None:
    """A constant sound: the model must come to know it, which a random one does not."""
    data = Tones(count=1)
    chosen = settings(steps=150, batch_size=8, log_every=150, ema_decay=0.9)
    stage2(toy(tmp_path / "toy"), tmp_path, data=data, transformer=model(width=48), settings=chosen)
    lines = [json.loads(line) for line in (tmp_path / "transformer/log.jsonl").read_text("utf-8").splitlines()]
    assert lines[-1]["validation/accuracy"] > 0.9
    pipe = Pipeline.from_pretrained(tmp_path, device="cpu")
    tokens = pipe.encode(data._source.tensors["audio"])
    mask = torch.zeros_like(tokens, dtype=torch.bool)
    mask[:, 4:9] = True
    filled = pipe.fill(tokens, mask, Request(seeds=[0], sampling=Sampling(steps=4, temperature=0.0)))
    assert (filled == tokens).float().mean() > 0.95


def test_sounds_that_could_not_be_written_are_said_before_the_training(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("maskgen.tasks.media.audio.libsndfile.library", lambda: None)
    with pytest.raises(ImportError, match="sound files need soundfile"):
        show_reconstructions(Melodies())
