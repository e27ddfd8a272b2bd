"""Both training stages end to end on tiny images: what is written, reused, refused, resumed, and learned."""

import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from maskgen.checkpoint import load_module, save_module
from maskgen.data import Source, TensorSource
from maskgen.models.bert import BertConfig, BertTransformer
from maskgen.models.modern import ModernConfig, ModernTransformer
from maskgen.objectives.masked import MaskedModeling, MaskingSettings
from maskgen.sampling.settings import Sampling
from maskgen.tasks.data.base import ImageData
from maskgen.tasks.data.images.digits import ShiftedSource
from maskgen.tasks.data.tokens.cache import tokenize
from maskgen.tasks.image.generation import generate
from maskgen.tasks.media.images import to_tensor
from maskgen.tasks.pipeline import Pipeline
from maskgen.tasks.training.tokenizer import train_tokenizer
from maskgen.tasks.training.transformer import train_transformer
from maskgen.tokenizers.base import Tokenizer
from maskgen.tokenizers.image.toy import ToyTokenizer, ToyTokenizerConfig
from maskgen.tokenizers.image.vqgan import VQGAN, VQGANConfig
from maskgen.tokenizers.quantizers.vector import QuantizerConfig
from maskgen.tokenizers.training.reconstruction import ReconstructionSettings, ReconstructionTraining
from maskgen.training.optim.optimizers import OptimizerSettings
from maskgen.training.run import Interrupted
from maskgen.training.settings import TrainSettings

VQGAN_CONFIG = VQGANConfig(
    channels=8,
    multipliers=(1, 2),
    res_blocks=1,
    groups=4,
    shortcut="input",
    quantizer=QuantizerConfig(codebook_size=16, dim=4),
)
PLAIN = ReconstructionSettings(perceptual=None, gan_weight=0.0)


class Squares(ImageData):
    """Grey squares in memory: every class another shade, every image another corner."""

    def __init__(self, size: int = 8, classes: int = 3, copies: int = 4, shift: int = 0) -> None:
        self.size, self.classes, self.shift = (size, size), classes, shift
        images = torch.zeros(classes * copies, 3, size, size)
        labels = torch.arange(classes).repeat_interleave(copies)
        half = size // 2
        for index, label in enumerate(labels.tolist()):
            top, left = half * (index % 2), half * (index // 2 % 2)
            images[index, :, top : top + half, left : left + half] = (label + 1) / classes
        self._source = TensorSource(images=images, labels=labels)

    @property
    def class_names(self) -> tuple[str, ...]:
        return tuple(f"shade {number}" for number in range(self.classes))

    def train(self) -> Source:
        return ShiftedSource(self._source, self.shift) if self.shift else self._source

    def test(self) -> Source | None:
        return self._source


class Untested(Squares):
    """Without held-out images."""

    def test(self) -> None:
        return None


def settings(**changes: Any) -> TrainSettings:
    optimizer = OptimizerSettings(lr=3e-3, warmup_steps=1, weight_decay=0.0, betas=(0.9, 0.98))
    never = {"validate_every": 0, "show_every": 0, "checkpoint_every": 0, "tracker": None}
    plain = {"optimizer": optimizer, "steps": 4, "batch_size": 6, "log_every": 2}
    return TrainSettings(**{**plain, **never, **changes})


def model(**changes: Any) -> ModernTransformer:
    sizes = {"vocab_size": 16, "num_classes": 3, "axes": (4, 4), "width": 16, "layers": 1, "heads": 2}
    return ModernTransformer(ModernConfig(**{**sizes, **changes}))


def stage1(out: Path, **changes: Any) -> Path:
    plain = {"tokenizer": VQGAN(VQGAN_CONFIG), "data": Squares(), "loss": PLAIN, "settings": settings(), "say": _ignore}
    return train_tokenizer(out=out, **{**plain, **changes})


def stage2(tokenizer: Path, out: Path, **changes: Any) -> Path:
    plain = {"data": Squares(), "masking": MaskingSettings(label_smoothing=0.0), "settings": settings(), "say": _ignore}
    chosen = {"transformer": model(), "sampling": Sampling(steps=2), **plain, **changes}
    return train_transformer(tokenizer=tokenizer, out=out, **chosen)


def toy(folder: Path, levels: int = 4, patch: int = 2) -> Path:
    save_module(ToyTokenizer(ToyTokenizerConfig(levels=levels, patch=patch)), folder)
    return folder


def _ignore(text: str) -> None:
    pass


def pixels(images: list[Image.Image]) -> np.ndarray:
    return np.stack([np.asarray(image) for image in images])


def state(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Every file below a folder with its content and time."""
    return {
        str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_two_stages_make_a_model(tmp_path: Path) -> None:
    said: list[str] = []
    out = tmp_path / "model"
    assert stage1(out / "tokenizer", say=said.append) == out / "tokenizer"
    assert stage2(out / "tokenizer", out, say=said.append) == out
    assert said == ["transformer: tokenizing 12 images, 1 view(s) each"]
    written = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}
    for stage in ("tokenizer", "transformer"):
        for name in ("config.json", "model.safetensors", "run.json", "log.jsonl", "best/model.safetensors"):
            assert f"{stage}/{name}" in written
        assert f"{stage}/checkpoints/step-00000004/run.json" in written
    assert "pipeline.json" in written
    with Image.open(out / "tokenizer" / "samples" / "reconstructions-00000004.png") as picture:
        assert picture.size == (8 * 10 + 2, 2 * 10 + 2)  # 8 images above 8 reconstructions, 2 pixels around each
    with Image.open(out / "transformer" / "samples" / "samples-00000004.png") as picture:
        assert picture.size == (3 * 10 + 2, 4 * 10 + 2)
    pipe = Pipeline.from_pretrained(out, device="cpu")
    assert pipe.config.class_names == ("shade 0", "shade 1", "shade 2")
    assert (pipe.config.sampling, pipe.axes) == (Sampling(steps=2), (4, 4))
    assert [image.size for image in generate(pipe, ["shade 1", 2])] == [(8, 8)] * 2


def test_a_finished_run_is_reused_and_untouched(tmp_path: Path) -> None:
    stage1(tmp_path / "tokenizer")
    stage2(tmp_path / "tokenizer", tmp_path)
    before, said = state(tmp_path), []
    stage1(tmp_path / "tokenizer", say=said.append)
    stage2(tmp_path / "tokenizer", tmp_path, say=said.append)
    assert said == [
        f"tokenizer: finished before, reused from {tmp_path / 'tokenizer'}",
        f"transformer: finished before, reused from {tmp_path / 'transformer'}",
    ]
    assert state(tmp_path) == before


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"settings": settings(steps=3)}, "settings.steps: 4 before, 3 now"),
        ({"data": Squares(copies=5)}, r"data.\w+: \d+ before, \d+ now.*"),
        ({"data": Squares(shift=1)}, r"data.\w+: 0 before, 1 now.*"),
        (
            {"loss": ReconstructionSettings(perceptual=None, gan_weight=0.0, pixel="l1")},
            "loss.pixel: l2 before, l1 now",
        ),
        ({"settings": settings(seed=1), "data": Untested()}, r"data\..*settings.seed: \d+ before, 1 now"),
    ],
)
def test_other_settings_in_the_same_folder(changes: dict[str, Any], named: str, tmp_path: Path) -> None:
    stage1(tmp_path)
    before = state(tmp_path)
    with pytest.raises(ValueError, match=rf"holds another run \({named}\); give --again"):
        stage1(tmp_path, **changes)
    assert state(tmp_path) == before


def test_other_settings_of_the_second_stage(tmp_path: Path) -> None:
    stage2(toy(tmp_path / "toy"), tmp_path, transformer=model(vocab_size=4))
    for changes, named in (
        ({"views": 2}, "views: 1 before, 2 now"),
        ({"sampling": Sampling(steps=3)}, r"sampling.*"),
        (
            {"transformer": model(vocab_size=4, layers=2), "masking": MaskingSettings()},
            r"transformer\.config\.layers: 1 before, 2 now; masking.*",
        ),
    ):
        with pytest.raises(ValueError, match=rf"holds another run \({named}\)"):
            stage2(tmp_path / "toy", tmp_path, **{"transformer": model(vocab_size=4), **changes})


def test_a_new_tokenizer_needs_a_new_transformer(tmp_path: Path) -> None:
    """Same sizes, other weights: the old transformer's codes would mean something else."""
    stage2(stage1(tmp_path / "tokenizer"), tmp_path)
    shutil.rmtree(tmp_path / "tokenizer")
    stage1(tmp_path / "tokenizer", settings=settings(seed=1))
    with pytest.raises(ValueError, match=r"holds another run \(tokenizer: \w{16} before, \w{16} now\)"):
        stage2(tmp_path / "tokenizer", tmp_path)


def test_a_foreign_description(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("[]", encoding="utf-8")
    with pytest.raises(ValueError, match=r"run\.json: not written by maskgen"):
        stage1(tmp_path)


def test_what_was_refused_does_not_bind(tmp_path: Path) -> None:
    """A first attempt that never trained leaves nothing that would forbid the corrected one."""
    with pytest.raises(ValueError, match=r"image_size: got 256, but the images are 8 x 8; set it"):
        stage1(tmp_path / "tokenizer", loss=ReconstructionSettings(perceptual=None))
    assert not (tmp_path / "tokenizer").exists()
    with pytest.raises(FloatingPointError, match="not finite"):
        stage1(tmp_path / "tokenizer", settings=settings(optimizer=OptimizerSettings(lr=1e30, warmup_steps=0)))
    stage1(tmp_path / "tokenizer")
    strict = BertTransformer(BertConfig(vocab_size=16, num_classes=3, axes=(4, 4), width=16, heads=2, layers=1))
    with pytest.raises(ValueError, match="label_dropout: got 0.1, but the model has no null class"):
        stage2(tmp_path / "tokenizer", tmp_path, transformer=strict)
    with pytest.raises(ValueError, match="views: got 0, expected at least 1"):
        stage2(tmp_path / "tokenizer", tmp_path, views=0)
    assert not (tmp_path / "transformer").exists()
    stage2(tmp_path / "tokenizer", tmp_path)
    assert (tmp_path / "pipeline.json").is_file()


def interrupt_at(step: int, real: Callable[..., Any]) -> Callable[..., Any]:
    """A loss that sends Ctrl-C to this process in the middle of one step."""

    def loss(self: Any, network: str, modules: Any, batch: Any, at: int) -> Any:
        if at == step:
            os.kill(os.getpid(), signal.SIGINT)
        return real(self, network, modules, batch, at)

    return loss


@pytest.mark.parametrize("stage", ["tokenizer", "transformer"])
def test_interrupted_and_gone_on(stage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = settings(steps=6, seed=3)

    def train(out: Path) -> Path:
        if stage == "tokenizer":
            return stage1(out, settings=chosen)
        return stage2(toy(tmp_path / "toy"), out, transformer=model(vocab_size=4, dropout=0.1), settings=chosen)

    kind = ReconstructionTraining if stage == "tokenizer" else MaskedModeling
    folder = "." if stage == "tokenizer" else "transformer"
    train(tmp_path / "whole")
    with monkeypatch.context() as patch:
        patch.setattr(kind, "loss", interrupt_at(2, kind.loss))
        with pytest.raises(Interrupted, match=f"{stage}: stopped after step 3 and saved; run it again to go on"):
            train(tmp_path / "parts")
    assert json.loads((tmp_path / "parts" / folder / "run.json").read_text(encoding="utf-8"))["finished"] is False
    with pytest.raises(ValueError, match=r"holds another run \(settings\.steps: 6 before, 5 now; settings.seed"):
        stage1(tmp_path / "parts", settings=settings(steps=5)) if stage == "tokenizer" else stage2(
            tmp_path / "toy",
            tmp_path / "parts",
            transformer=model(vocab_size=4, dropout=0.1),
            settings=settings(steps=5),
        )
    torch.manual_seed(77)
    train(tmp_path / "parts")
    for name in ("model.safetensors", "config.json", "run.json"):
        whole, parts = ((tmp_path / kind_ / folder / name).read_bytes() for kind_ in ("whole", "parts"))
        assert whole == parts
    lines = (tmp_path / "parts" / folder / "log.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["step"] for line in lines if "loss" in json.loads(line)] == [2, 4, 6]


def test_every_misfit_is_listed(tmp_path: Path) -> None:
    toy(tmp_path / "toy", levels=5)
    wrong = model(vocab_size=7, num_classes=2, axes=(3, 4), num_codebooks=2)
    with pytest.raises(ValueError, match="does not fit the tokenizer and the data") as caught:
        stage2(tmp_path / "toy", tmp_path / "out", transformer=wrong)
    for part in ("vocab_size is 7, expected 5", "num_codebooks is 2, expected 1", "axes is (3, 4), expected (4, 4)"):
        assert part in str(caught.value)
    with pytest.raises(ValueError, match="num_classes is 0, expected 3"):
        stage2(tmp_path / "toy", tmp_path / "out", transformer=model(vocab_size=5, num_classes=0))
    assert not (tmp_path / "out").exists()


def test_classes_are_those_of_the_data(tmp_path: Path) -> None:
    said: list[str] = []
    stage2(toy(tmp_path / "toy", levels=16), tmp_path / "out", transformer=model(num_classes=7), say=said.append)
    assert "transformer: num_classes 3, as many as the data have; its settings say 7" in said
    pipe = Pipeline.from_pretrained(tmp_path / "out")
    assert (pipe.transformer.num_classes, len(pipe.config.class_names)) == (3, 3)


def test_a_launch_that_cannot_work_is_refused_before_anything_is_tokenized(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")  # as ``accelerate launch`` with such a file does
    with pytest.raises(ValueError, match="mixed_precision: the launcher says bf16, the run's settings say no"):
        stage2(toy(tmp_path / "toy", levels=16), tmp_path / "out")
    assert not (tmp_path / "out" / "tokens").exists()


def test_a_tokenizer_from_elsewhere_is_copied(tmp_path: Path) -> None:
    stage1(tmp_path / "elsewhere")
    before = state(tmp_path / "elsewhere")
    stage2(tmp_path / "elsewhere", tmp_path / "elsewhere" / "model")  # even into itself
    copied = tmp_path / "elsewhere" / "model" / "tokenizer"
    for name in ("config.json", "model.safetensors", "run.json"):
        assert (copied / name).read_bytes() == before[name][0]
    assert not (copied / "checkpoints").exists()
    images = Squares().train().batch(range(12), range(12))["images"]
    loaded = Pipeline.from_pretrained(tmp_path / "elsewhere" / "model", device="cpu")
    with torch.no_grad():
        assert torch.equal(loaded.encode(images), load_module(tmp_path / "elsewhere", VQGAN).encode(images))
    assert {name: state(tmp_path / "elsewhere")[name] for name in before} == before


def test_no_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"tokenizer: got .*nowhere, which holds none .*train tokenizer"):
        stage2(tmp_path / "nowhere", tmp_path / "out")
    save_module(model(), tmp_path / "other")
    with pytest.raises(ValueError, match="holds a ModernTransformer, expected a Tokenizer"):
        stage2(tmp_path / "other", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_without_held_out_images(tmp_path: Path) -> None:
    stage1(tmp_path / "tokenizer", data=Untested())
    stage2(tmp_path / "tokenizer", tmp_path, data=Untested())
    assert not (tmp_path / "tokenizer" / "best").exists()
    assert len(list((tmp_path / "tokenizer" / "samples").iterdir())) == 1
    assert (tmp_path / "pipeline.json").is_file()


def test_tokenize() -> None:
    tokenizer = ToyTokenizer(ToyTokenizerConfig(levels=4, patch=2))
    data = Squares(shift=2)
    still = Squares().train().batch(range(12), range(12))
    plain = tokenize(Squares().train(), tokenizer, batch_size=5)
    assert torch.equal(plain.tensors["tokens"], tokenizer.encode(still["images"]))
    assert torch.equal(plain.tensors["labels"], still["labels"])
    views = tokenize(data.train(), tokenizer, views=3, seed=9, batch_size=5)
    assert views.tensors["tokens"].shape == (36, 16, 1)
    assert torch.equal(views.tensors["labels"], still["labels"].repeat(3))
    first, second, third = views.tensors["tokens"].split(12)
    assert not torch.equal(first, second)
    assert not torch.equal(second, third)
    for index in (0, 7):  # image 7 in the second view: its own seed, whatever the batch
        alone = data.train().batch([index], [9 + 12 + index])
        assert torch.equal(second[index], tokenizer.encode(alone["images"])[0])
    again = tokenize(data.train(), tokenizer, views=3, seed=9, batch_size=64)
    assert torch.equal(again.tensors["tokens"], views.tensors["tokens"])
    assert not torch.equal(tokenize(data.train(), tokenizer, seed=500).tensors["tokens"], first)
    with pytest.raises(ValueError, match="views: got 0, expected at least 1"):
        tokenize(data.train(), tokenizer, views=0)


@pytest.mark.parametrize("family", ["modern", "bert"])
def test_two_images_learned_by_heart_are_generated(family: str, tmp_path: Path) -> None:
    data = Squares(classes=2, copies=1)
    tokens = {"vocab_size": 3, "num_classes": 2, "axes": (4, 4)}
    transformer = model(**tokens, width=32, layers=2)
    if family == "bert":
        sizes = {"width": 32, "layers": 2, "heads": 2, "mlp_width": 64, "dropout": 0.0, "null_class": True}
        transformer = BertTransformer(BertConfig(**tokens, **sizes))  # type: ignore[assignment]
    stage2(
        toy(tmp_path / "toy", levels=3),
        tmp_path,
        transformer=transformer,
        data=data,
        masking=MaskingSettings(label_smoothing=0.0),
        settings=settings(
            steps=150, batch_size=16, log_every=150, optimizer=OptimizerSettings(lr=1e-2, warmup_steps=9)
        ),
        sampling=Sampling(steps=4, choice_temperature=1.0),
    )
    pipe = Pipeline.from_pretrained(tmp_path, device="cpu")
    images = data.train().batch([0, 1], [0, 1])["images"]
    for guidance in (0.0, 1.0):
        made = generate(pipe, [0, 1] * 3, guidance=guidance)
        assert torch.equal(to_tensor(made), (images * 255).round().div(255).repeat(3, 1, 1, 1))
    kind = {"modern": "ModernTransformer", "bert": "BertTransformer"}[family]
    assert type(pipe.transformer).__name__ == kind
    assert isinstance(pipe.tokenizer, Tokenizer)
