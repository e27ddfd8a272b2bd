"""A model hears sounds as loud as those it was trained on, whatever hands it one; and says so where it cannot know."""

import contextlib
import io
import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from maskgen.checkpoint import read_json, write_json
from maskgen.tasks.audio.source import MemorySound
from maskgen.tasks.audio.windows import recode
from maskgen.tasks.cli import main
from maskgen.tasks.conditions.preparation import Preparation, loudness_of
from maskgen.tasks.data.audio.folders import SoundFolder
from maskgen.tasks.media.audio.features import normalize_loudness
from maskgen.tasks.media.audio.files import save_sound
from maskgen.tasks.pipeline import Pipeline
from maskgen.tokenizers.audio.base import AudioTokenizer
from maskgen.tokenizers.audio.codec import AudioCodec

RATE = 8000
SETTINGS: dict[str, Any] = {
    "steps": 2,
    "batch_size": 4,
    "optimizer": {"lr": 1e-3, "warmup_steps": 1},
    "log_every": 2,
    "validate_every": 0,
    "show_every": 0,
    "checkpoint_every": 0,
    "tracker": None,
}
CODEC = {"sample_rate": RATE, "hop": 40, "width": 8, "encoder_dilations": [1], "decoder_dilations": [1]}
CODEC |= {"codebook_size": 16, "codebooks": 2, "dim": 4}
SIZES = {"vocab_size": 16, "num_codebooks": 2, "num_classes": 0, "axes": [100], "width": 16, "layers": 1, "heads": 2}


def data(loudness: float | None) -> dict[str, Any]:
    how = {"root": "sounds", "sample_rate": RATE, "seconds": 0.5, "loudness": loudness, "held_out": 0.0}
    return {"class_path": "maskgen.tasks.data.audio.folders.SoundFolder", "init_args": how}


def train(stage: str, part: dict[str, Any], loudness: float | None, *words: str) -> None:
    given = {"tokenizer": {"loss": {"windows": [64, 32], "bands": [8, 4]}}}.get(
        stage, {"masking": {"label_smoothing": 0.0}}
    )
    settings = {stage: part, "data": data(loudness), "settings": SETTINGS, **given}
    Path("run.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    main(["train", stage, "--config=run.yaml", *words])


def train_both(loudness: float | None) -> None:
    for number in range(6):
        time = torch.arange(RATE) / RATE
        save_sound((0.7 * torch.sin(2 * math.pi * (200 + 50 * number) * time))[None], f"sounds/{number}.wav", RATE)
    train("tokenizer", {"class_path": "maskgen.tokenizers.audio.AudioCodec", "init_args": {"config": CODEC}}, loudness,
          "--out=m/tokenizer")  # fmt: skip
    train("transformer", {"class_path": "maskgen.models.ModernTransformer", "init_args": {"config": SIZES}}, loudness,
          "--tokenizer=m/tokenizer", "--out=m")  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with sounds, and the model ``m`` that was trained on them as loud as they are."""
    folder = tmp_path_factory.mktemp("loudness")
    with contextlib.chdir(folder):
        train_both(None)
    return folder


@pytest.fixture
def place(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it to work in."""
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def heard(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Levels in dB of all that a codec encodes."""
    found: list[float] = []
    original = AudioCodec.encode_scaled

    def listen(self: AudioCodec, signal: torch.Tensor) -> Any:
        found.append(10 * math.log10(float(signal.square().mean()) + 1e-12))
        return original(self, signal)

    monkeypatch.setattr(AudioCodec, "encode_scaled", listen)
    return found


@pytest.mark.parametrize("loudness", [-35.0])
def test_edits_hear_what_training_heard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, heard: list[float], loudness: float | None
) -> None:
    monkeypatch.chdir(tmp_path)
    train_both(loudness)
    trained = sum(heard) / len(heard)
    assert read_json(Path("m/pipeline.json"))["config"]["prepared"] == {
        "size": [4000], "crop": None, "frame_rate": None, "sample_rate": RATE, "channels": 1, "loudness": loudness
    }  # fmt: skip
    words = ["--model=m", "--source=sounds/0.wav"]
    for edit in (
        ["infill", "--start=0.4", "--stop=0.45"],
        ["continue-audio", "--seconds=0.1"],
        ["vary"],
        ["loop", "--seam=0.1"],
    ):
        heard.clear()
        main([*edit, *words, f"--out={edit[0]}"])
        assert min(heard) == pytest.approx(trained, abs=2)
        assert read_json(Path(edit[0], "manifest.json"))["loudness"] == loudness
    heard.clear()
    with pytest.warns(UserWarning, match=f"loudness: -30.0 LUFS in place of the model's own {loudness}"):
        main(["vary", *words, "--loudness=-30", "--out=out"])
    assert read_json(Path("out/manifest.json"))["loudness"] == -30.0
    assert sum(heard) / len(heard) == pytest.approx(-29, abs=1.5)  # dB of a tone of 200 Hz
    with contextlib.redirect_stdout(io.StringIO()) as told:
        main(["info", "--model=m"])
    assert json.loads(told.getvalue())["loudness"] == loudness


def test_folders_saved_before(place: Path) -> None:
    """What the training wrote beside the model says it; a folder without that says that it does not know."""
    description = read_json(Path("m/pipeline.json"))
    del description["config"]["prepared"]
    write_json(Path("m/pipeline.json"), description)
    pipe = Pipeline.from_pretrained("m")
    assert pipe.config.prepared == Preparation(size=(4000,), sample_rate=RATE, channels=1, loudness=None)
    Path("m/transformer/run.json").unlink()
    with pytest.warns(UserWarning, match=r"m: does not say how loud its training sounds were.*-24 LUFS unless"):
        pipe = Pipeline.from_pretrained("m")
    assert loudness_of("model", pipe.config.prepared) == -24.0


def test_data_of_another_loudness_are_said(place: Path) -> None:
    told = r"data: not as those that the {} was trained on \(loudness None against -24.0"
    model = {"class_path": "maskgen.models.ModernTransformer", "init_args": {"config": SIZES}}
    with pytest.warns(UserWarning, match=told.format("tokenizer")):
        train("transformer", model, -24.0, "--tokenizer=m/tokenizer", "--out=n")
    louder = [f"--data.{name}={value}" for name, value in data(-24.0)["init_args"].items()]
    words = ["evaluate", "model", "--model=m", f"--data={data(-24.0)['class_path']}", *louder, "--data.held_out=0.5"]
    with pytest.warns(UserWarning, match=told.format("model")):
        main([*words, "--out=e", '--settings.metrics=["masked"]'])
    with pytest.warns(UserWarning, match=told.format("model")):
        main([*words, "--out=f", "--task=infill", '--settings.metrics=["log_mel"]'])


def test_the_bound_is_heard_as_the_gap_is(place: Path, heard: list[float]) -> None:
    """What no filling can be expected to fall below went through the codec as loud as it came, the filling at -24 LUFS."""
    pipe, sound = Pipeline.from_pretrained("m"), torch.randn(1, 4000, generator=torch.Generator().manual_seed(0)) * 0.3
    heard.clear()
    rebuilt = recode(pipe, MemorySound(sound, RATE), (1000, 1400), -24.0)
    level = normalize_loudness(sound, RATE)
    assert heard[0] == pytest.approx(10 * math.log10(float(level.square().mean())), abs=1)
    assert rebuilt.shape == sound.shape
    codec = pipe.tokenizer
    assert isinstance(codec, AudioTokenizer)
    louder = recode(pipe, MemorySound(2 * sound, RATE), (1000, 1400), -24.0)
    assert torch.allclose(louder, 2 * rebuilt, rtol=1e-3, atol=1e-5)  # the codec heard the same


@pytest.mark.parametrize("asked", [math.nan, math.inf, "loud", 90, -71])
def test_no_loudness(asked: Any) -> None:
    with pytest.raises(ValueError, match="loudness: got .*, expected LUFS from -70 to 0 such as -24.0, or 'model'"):
        loudness_of(asked, None)
    with pytest.raises(ValueError, match="loudness: got"):
        SoundFolder(Path(), sample_rate=RATE, seconds=1, loudness=asked)
