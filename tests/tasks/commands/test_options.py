"""What a command names lies over what the model folder says, and every manifest says what was really used."""

import dataclasses
import json
import warnings
from pathlib import Path
from typing import Any

import pytest

from maskgen.sampling.filters import TokenFilter
from maskgen.sampling.guidance import Guidance
from maskgen.sampling.settings import Sampling
from maskgen.tasks.image import generate
from maskgen.tasks.media.audio.files import save_sound
from maskgen.tasks.media.video.files import save_video
from maskgen.tasks.pipeline import Pipeline
from tests.support import tiny_audio_pipeline, tiny_pipeline
from tests.tasks.commandline import edits, files, refused, run
from tests.tasks.commands.test_audio import RATE, wave
from tests.tasks.commands.test_audio import edits as sound_edits
from tests.tasks.media.video.samples import moving
from tests.tasks.video import toys

OWN = Sampling(steps=2, temperature=0.7, guidance=Guidance(scale=1.5, ramp="linear"), filter=TokenFilter(top_k=9))
GIVEN = ("--sampling.filter.top_p", 0.9, "--sampling.guidance.power", 2)
USED = dataclasses.replace(
    OWN, filter=TokenFilter(top_k=9, top_p=0.9), guidance=Guidance(scale=1.5, ramp="linear", power=2.0)
)


def with_own(pipe: Pipeline, folder: Path, own: Sampling = OWN) -> Path:
    pipe.config = dataclasses.replace(pipe.config, sampling=own)
    pipe.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return with_own(tiny_pipeline(), tmp_path_factory.mktemp("own") / "model")


def manifest(out: str) -> Any:
    return json.loads((Path(out) / "manifest.json").read_text(encoding="utf-8"))


def used(sampling: Sampling) -> Any:
    return json.loads(json.dumps(dataclasses.asdict(sampling)))


def test_generating(own: Path, place: Path) -> None:
    common = ("generate", "--model", own, "--labels", "seven")
    run(*common, *GIVEN, "--out", "few")
    assert manifest("few")["sampling"] == used(USED)
    Path("s.yaml").write_text("sampling:\n  filter: {top_p: 0.9}\n  guidance: {power: 2}\n", encoding="utf-8")
    run(*common, "--config", "s.yaml", "--per-class", 1, "--out", "set")
    assert manifest("set")["sampling"] == used(USED)
    run(*common, *GIVEN, "--steps", 4, "--guidance", 0, "--out", "both")
    rest = dataclasses.replace(USED.guidance, scale=0.0)
    assert manifest("both")["sampling"] == used(dataclasses.replace(USED, steps=4, guidance=rest))
    run("generate", "--manifest", "few/manifest.json", "--out", "again")
    assert manifest("again")["sampling"] == used(USED)
    name = manifest("few")["items"][0]["file"]
    assert Path("again", name).read_bytes() == Path("few", name).read_bytes()


@pytest.mark.parametrize("task", ["inpaint", "outpaint", "swap-class"])
def test_edits(task: str, own: Path, place: Path) -> None:
    words = edits(own)[task]
    run(*words, *GIVEN, "--out", "out")
    assert manifest("out")["sampling"] == used(dataclasses.replace(USED, steps=12) if task == "swap-class" else USED)
    assert (manifest("out")["label"], manifest("out")["classes"]) == ("four", {"4": "four"})
    run(*words, "--sampling.steps", 4, "--label", 7, "--out", "seven")
    assert manifest("seven")["sampling"] == used(dataclasses.replace(OWN, steps=4))
    assert (manifest("seven")["label"], manifest("seven")["classes"]) == ("7", {"7": "seven"})


def test_calls(own: Path) -> None:
    """In Python as on the command line."""
    pipe = Pipeline.from_pretrained(own, device="cpu")
    given = Sampling(filter=TokenFilter(top_p=0.9), guidance=Guidance(power=2.0))
    assert pipe.sampling(given) == USED
    assert pipe.sampling(None) == OWN
    first, second = (generate(pipe, [3], seeds=[1], sampling=one)[0] for one in (given, USED))
    assert first.tobytes() == second.tobytes()


def test_sound(place: Path, tmp_path: Path) -> None:
    pipe = tiny_audio_pipeline()
    sampling = Sampling(sampler="codebook", steps=2, temperature=0.7)
    model = with_own(pipe, tmp_path / "model", sampling)
    save_sound(wave(400), "sound.wav", RATE, bits=32)
    expected = used(dataclasses.replace(sampling, filter=TokenFilter(top_p=0.9)))
    for task, words in {**sound_edits(model), "generate": ("generate", "--model", model)}.items():
        run(*words, "--sampling.filter.top_p", 0.9, "--out", task)
        told = manifest(task)
        assert (told["sampling"], told["fine_sampling"]) == (expected, used(Sampling(steps=1)))


def test_video(place: Path, tmp_path: Path) -> None:
    pipe = toys.pipeline()
    model = with_own(pipe, tmp_path / "model", dataclasses.replace(pipe.config.sampling, temperature=0.7))
    save_video(moving(toys.LENGTH, toys.SIDE, toys.SIDE), "clip.mp4", 8)
    run("predict-frames", "--model", model, "--video", "clip.mp4", "--sampling.filter.top_p", 0.9, "--out", "out")
    own = Pipeline.from_pretrained(model, device="cpu").config.sampling
    assert manifest("out")["sampling"] == used(dataclasses.replace(own, filter=TokenFilter(top_p=0.9)))


def test_evaluation(own: Path, place: Path) -> None:
    """A model's samples; and their names, by which they are matched later."""
    digits = ("--data", "maskgen.tasks.data.images.digits.Digits", "--data.size", 32)
    features = ("--features", "maskgen.tasks.evaluation.features.base.PixelFeatures", "--features.side", 2)
    quick = ("--settings.metrics", '["kid"]', "--settings.count", 4, "--settings.shown", 0, "--cache", "cache")
    run("evaluate", "model", "--model", own, *digits, *features, *quick, *GIVEN, "--out", "out")
    assert manifest("out/samples")["sampling"] == used(USED)
    assert manifest("out/samples")["classes"] == {"0": "zero", "2": "two", "5": "five", "7": "seven"}


def test_results_of_earlier_runs(own: Path, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """They stay, are said, and are still listed somewhere; an evaluation set is not touched at all."""
    common = ("generate", "--model", own, "--out", "out")
    run(*common, "--labels", "1,2,3")
    before = manifest("out")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run(*common, "--labels", "1,5", "--count", 1)
    (said,) = [str(one.message) for one in caught]
    assert said == (
        "out: out holds 2 results of earlier runs beside these (label-0002_seed-00000001.png, "
        "label-0003_seed-00000002.png); manifest-1.json keeps what their manifest said; name another folder to keep runs apart"
    )
    kept = json.loads(Path("out/manifest-1.json").read_text(encoding="utf-8"))
    assert kept == {**before, "items": before["items"][1:]}
    assert [item["label"] for item in manifest("out")["items"]] == [1, 5]
    with pytest.warns(UserWarning, match="out holds 4 results of earlier runs beside these"):
        run(*edits(own)["inpaint"], "--out", "out")
    assert {"manifest-1.json", "manifest-2.json"} <= set(files(Path("out")))
    run("generate", "--model", own, "--labels", "1", "--per-class", 1, "--out", "set")
    content = {name: Path("set", name).read_bytes() for name in files(Path("set"))}
    for words in (
        edits(own)["inpaint"],
        ("generate", "--model", own),
        ("generate", "--manifest", "out/manifest-1.json"),
    ):
        line = refused(capsys, *words, "--out", "set")
        assert line == "out: set holds an evaluation set, which other results would spoil; name another folder"
    assert content == {name: Path("set", name).read_bytes() for name in files(Path("set"))}
