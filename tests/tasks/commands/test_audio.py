"""``maskgen`` on sound: training, the four edits, what they write, and mistakes in one line.

Shapes: C channels, S samples.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

from maskgen.checkpoint import save_module
from maskgen.tasks.media.audio.files import load_sound, save_sound
from maskgen.tokenizers.audio.toy import ToyAudioTokenizer, ToyAudioTokenizerConfig
from tests.support import make_tiny_pipeline, tiny_audio_pipeline
from tests.tasks.commandline import files, refused, run

RATE, HOP, V, FRAMES = 800, 8, 8, 20
SECONDS = 0.5
FAST: dict[str, Any] = {
    "steps": 3,
    "batch_size": 4,
    "optimizer": {"lr": 1.0e-3, "warmup_steps": 1},
    "log_every": 3,
    "validate_every": 0,
    "show_every": 0,
    "checkpoint_every": 0,
    "tracker": None,
}
DATA: dict[str, Any] = {
    "class_path": "maskgen.tasks.data.audio.folders.SoundFolder",
    "init_args": {"root": "sounds", "sample_rate": RATE, "seconds": 0.2, "held_out": 0.0, "cutoff": -70.0},
}
CODEC: dict[str, Any] = {
    "tokenizer": {
        "class_path": "maskgen.tokenizers.audio.AudioCodec",
        "init_args": {
            "config": {
                "sample_rate": RATE,
                "hop": 8,
                "width": 4,
                "encoder_dilations": [1],
                "decoder_dilations": [1],
                "codebook_size": V,
                "codebooks": 2,
                "dim": 4,
            }
        },
    },
    "loss": {"windows": [32, 16], "bands": [4, 4]},
    "data": DATA,
    "settings": FAST,
}


def transformer(codebooks: int) -> dict[str, Any]:
    sizes = {"vocab_size": V, "num_codebooks": codebooks, "num_classes": 0, "axes": [FRAMES], "width": 16}
    model = {
        "class_path": "maskgen.models.modern.ModernTransformer",
        "init_args": {"config": {**sizes, "layers": 1, "heads": 2}},
    }
    return {"transformer": model, "data": DATA, "masking": {"label_smoothing": 0.0}, "settings": FAST}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A toy codec under random transformers, in two stages."""
    folder = tmp_path_factory.mktemp("audio") / "model"
    tiny_audio_pipeline().save_pretrained(folder)
    return folder


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a sound to edit and six to train on."""
    monkeypatch.chdir(tmp_path)
    save_sound(wave(round(SECONDS * RATE)), "sound.wav", RATE, bits=32)
    for index in range(6):
        path = Path("sounds") / f"{index}.wav"
        path.parent.mkdir(exist_ok=True)
        save_sound(wave(300, index), path, RATE)
    return tmp_path


def wave(samples: int, seed: int = 0, channels: int = 1) -> Tensor:
    return torch.rand(channels, samples, generator=torch.Generator().manual_seed(seed)) * 1.4 - 0.7


def edits(model: Path) -> dict[str, tuple[object, ...]]:
    """A complete command of each task."""
    common = ("--model", model, "--source", "sound.wav")
    return {
        "infill": ("infill", *common, "--start", 0.2, "--stop", 0.3),
        "continue": ("continue-audio", *common, "--seconds", 0.15),
        "vary": ("vary", *common, "--period", 3, "--keep-codebooks", 2, "--onset-width", 1),
        "loop": ("loop", *common, "--seam", 0.1),
    }


def test_edits(model: Path, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each writes its sounds and a manifest; seeds are the results' names, and what must stay stays."""
    before = load_sound("sound.wav")[0]
    lengths = {"infill": SECONDS, "continue": SECONDS + 0.15, "vary": SECONDS, "loop": SECONDS}
    for task, words in edits(model).items():
        run(*words, "--count", 2, "--seed", 5, "--out", task)
        assert f"2 sound(s) and manifest.json in {task}" in capsys.readouterr().out
        expected = [f"{task}_seed-{seed:08d}.wav" for seed in (5, 6)]
        assert files(Path(task)) == sorted([*expected, "manifest.json"])
        manifest = json.loads((Path(task) / "manifest.json").read_text(encoding="utf-8"))
        assert (manifest["task"], manifest["model"], manifest["source"]) == (task, str(model), "sound.wav")
        assert manifest["items"] == [{"file": name, "seed": seed} for name, seed in zip(expected, (5, 6), strict=True)]
        assert manifest["sampling"]["steps"] == 2
        (first, rate), (second, _) = (load_sound(Path(task) / name) for name in expected)
        assert (rate, first.shape) == (RATE, (1, round(lengths[task] * RATE)))
        assert not torch.equal(first, second)
        if task == "infill":
            kept = torch.ones(first.shape[1], dtype=torch.bool)
            kept[round(0.19 * RATE) : round(0.31 * RATE)] = False
            assert torch.equal(first[:, kept], before[:, kept])
            assert not torch.equal(first, before)
        run(*words, "--seed", 6, "--out", f"{task}-again")
        assert torch.equal(load_sound(Path(f"{task}-again") / expected[1])[0], second)
    assert json.loads(Path("infill/manifest.json").read_text(encoding="utf-8"))["start"] == 0.2
    varied = json.loads(Path("vary/manifest.json").read_text(encoding="utf-8"))
    assert (varied["period"], varied["keep_codebooks"], varied["onset_width"]) == (3, 2, 1)


def test_other_formats_and_channels(model: Path, place: Path) -> None:
    save_sound(wave(400, channels=2), "stereo.flac", RATE, bits=16)
    before = load_sound("stereo.flac")[0]
    words = ("infill", "--model", model, "--start", 0.2, "--stop", 0.3)
    with pytest.warns(UserWarning, match="samples beyond .* were clipped to fit into PCM_16"):  # of a random model
        run(*words, "--source", "stereo.flac", "--steps", 3, "--out", "a")
    after = load_sound("a/infill_seed-00000000.flac")[0]
    assert after.shape == (2, 400)
    assert torch.equal(after[:, :150], before[:, :150])
    assert torch.equal(after[:, 250:], before[:, 250:])
    assert json.loads(Path("a/manifest.json").read_text(encoding="utf-8"))["sampling"]["steps"] == 3
    save_sound(wave(16000), "sound.mp3", 16000)
    with pytest.warns(
        UserWarning,
        match=r"sound.mp3: its coding \(MPEG_LAYER_III\) cannot be written again without a loss: the result is .wav",
    ):
        run(*words, "--source", "sound.mp3", "--out", "b")
    assert files(Path("b")) == ["infill_seed-00000000.wav", "manifest.json"]


def test_mistakes(model: Path, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("text.wav").write_text("no sound", encoding="utf-8")
    infill, more, vary, loop = (edits(model)[task] for task in ("infill", "continue", "vary", "loop"))
    for words, message in (
        ((*infill, "--stop", 0.1), "got start 0.2 s and stop 0.1 s, expected start before stop"),
        ((*infill, "--stop", 9), "expected a span inside the sound, which is 0.5 s long"),
        ((*infill, "--source", "nowhere.wav"), "nowhere.wav"),
        ((*infill, "--source", "text.wav"), "text.wav"),
        ((*infill, "--count", 0), "count: got 0, expected at least 1"),
        ((*infill, "--label", "dog"), "label: got 'dog', but this model has no classes; give none"),
        ((*infill, "--steps", 0), "steps: got 0, expected at least 1"),
        ((*infill, "--crossfade", -1), "crossfade: got -1"),
        ((*more, "--seconds", 0), "seconds: got 0"),
        ((*more, "--seconds", "1e9"), "seconds: got 1e+09, expected at most 86400, a day"),
        ((*more, "--seconds", 1, "--loudness", "loud"), "loudness: expected float or model, got loud"),
        ((*vary, "--period", -1), "period"),
        ((*vary, "--keep_codebooks", 9), "9"),
        ((*loop, "--seam", 0.6), "seam: got 0.6 s, expected less than the 0.5 s of the sound"),
        ((*infill, "--device", "cuda:77"), "device: got 'cuda:77', which cannot be used here; expected cpu"),
    ):
        assert message in refused(capsys, *words, "--out", "out"), words
    assert not Path("out").exists() or files(Path("out")) == []


def test_generating(model: Path, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("generate", "--model", model, "--count", 3, "--seed", 4, "--steps", 3, "--out", "a")
    assert "3 sound(s) and manifest.json in a" in capsys.readouterr().out
    names = [f"seed-{seed:08d}.wav" for seed in (4, 5, 6)]
    assert files(Path("a")) == sorted([*names, "manifest.json"])
    sound, rate = load_sound(f"a/{names[0]}")
    assert (rate, sound.shape) == (RATE, (1, FRAMES * HOP))
    assert json.loads(Path("a/manifest.json").read_text(encoding="utf-8"))["sampling"]["steps"] == 3
    run("generate", "--manifest", "a/manifest.json", "--out", "b", "--batch_size", 2)
    for name in files(Path("a")):
        assert Path("a", name).read_bytes() == Path("b", name).read_bytes()
    assert "label: got '0', but this model has no classes" in refused(
        capsys, "generate", "--model", model, "--labels", 0, "--out", "out"
    )


def test_options_of_before(model: Path, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("infill", "--model", model, "--start", 0.2, "--stop", 0.3, "--out", "out")
    assert "audio: this option is called source now" in refused(capsys, *words, "--audio", "sound.wav")
    Path("run.yaml").write_text("source: sound.wav\nsampling: {top_k: 2}\n", encoding="utf-8")
    told = "sampling.top_k: this option is called sampling.filter.top_k now"
    assert told in refused(capsys, *words, "--config", "run.yaml")
    assert told in refused(capsys, *words, "--source", "sound.wav", "--sampling.top-k", 2)
    told = "sampling.guidance: this option is called sampling.guidance.scale now"
    assert told in refused(capsys, *words, "--source", "sound.wav", "--sampling.guidance", 2)


def test_models_of_the_other_modality(place: Path, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_tiny_pipeline(Path("images"))
    for words in edits(Path("images")).values():
        assert "needs an audio model, but this model's modality is image" in refused(capsys, *words, "--out", "out")
    assert not Path("out").exists()


def test_info(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("info", "--model", model)
    found = json.loads(capsys.readouterr().out)
    assert (found["modality"], found["token_axes"]) == ("audio", [FRAMES])
    assert (found["sample_rate"], found["channels"], found["frames_per_second"]) == (RATE, 1, 100.0)
    assert found["codebooks"] == {"tokenizer": 3, "transformer": 1, "fine": 3}
    assert found["fine"]["class"] == "ModernTransformer"
    assert found["fine_sampling"]["steps"] == 1
    assert found["tokenizer_identity"].startswith("ToyAudioTokenizer-800-8-")


def test_training_in_three_stages(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, content in (("codec", CODEC), ("both", transformer(2))):
        Path(f"{name}.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    run("train", "tokenizer", "--config", "codec.yaml", "--out", "m/tokenizer")
    common = ("--tokenizer", "m/tokenizer", "--out", "m")
    fewer = ("--transformer.config.num_codebooks", 1)
    run("train", "transformer", "--config", "both.yaml", *common, "--codebooks", 1, *fewer)
    second = ("train", "transformer", "--config", "both.yaml", *common, "--stage", "fine")
    assert "masking.visible_codebooks: got 0, expected 1" in refused(capsys, *second)
    run(*second, "--masking.visible_codebooks", 1, "--sampling.steps", 1)
    run("infill", "--model", "m", "--source", "sound.wav", "--start", 0.2, "--stop", 0.3, "--out", "out")
    assert load_sound("out/infill_seed-00000000.wav")[0].shape == (1, 400)
    run("train", "tokenizer", "--config", "codec.yaml", "--out", "m/tokenizer")
    assert "tokenizer: finished before, reused from m/tokenizer" in capsys.readouterr().out


def codec_of(**changes: Any) -> dict[str, Any]:
    plain = CODEC["tokenizer"]
    return {**plain, "init_args": {"config": {**plain["init_args"]["config"], **changes}}}


def test_mistakes_in_training(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, changes, message in (
        ("key", {"tokenizer": codec_of(stride=2)}, "stride"),
        ("rate", {"tokenizer": codec_of(sample_rate=900)}, "data: got 800 Hz and 1 channel(s), but the codec"),
        ("data", {"data": {**DATA, "init_args": {**DATA["init_args"], "root": "nowhere"}}}, "nowhere"),
        ("image", {"data": {"class_path": "maskgen.tasks.data.images.digits.Digits"}}, "data"),
    ):
        Path(f"{name}.yaml").write_text(yaml.safe_dump({**CODEC, **changes}), encoding="utf-8")
        assert message in refused(capsys, "train", "tokenizer", "--config", f"{name}.yaml", "--out", "out"), name
    codec = ToyAudioTokenizer(ToyAudioTokenizerConfig(sample_rate=RATE, hop=HOP, levels=V, codebooks=3))
    save_module(codec, Path("toy"))
    Path("t.yaml").write_text(yaml.safe_dump(transformer(2)), encoding="utf-8")
    words = ("train", "transformer", "--config", "t.yaml", "--tokenizer", "toy", "--out", "out")
    assert "num_codebooks is 2, expected 3" in refused(capsys, *words)
    assert "codebooks: got 4, expected 1 to 3" in refused(capsys, *words, "--codebooks", 4)
    assert "stage" in refused(capsys, *words, "--stage", "medium")
    assert not Path("out").exists()


def test_libraries_of_sound_are_loaded_when_they_are_needed(tmp_path: Path) -> None:
    code = (
        "import sys, maskgen.tasks.cli as c; c.build_parser(); "
        "print([n for n in ('torchaudio', 'soundfile', 'encodec', 'transformers') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"
