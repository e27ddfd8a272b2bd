"""What a command names lies over what the model folder says, and every manifest says what was really used."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from maskgen.models.modern import ModernConfig, ModernTransformer
from maskgen.sampling.filters import TokenFilter
from maskgen.sampling.guidance import Guidance
from maskgen.sampling.settings import Sampling
from maskgen.tasks.image import generate
from maskgen.tasks.media.audio.files import save_sound
from maskgen.tasks.media.video.files import save_video
from maskgen.tasks.pipeline import Pipeline
from tests.support import tiny_audio_pipeline, tiny_pipeline, toy_pipeline
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
    capsys.readouterr()
    run(*common, "--labels", "1,5", "--count", 1)
    assert capsys.readouterr().out == (
        "2 images, grid.png and manifest.json in out (2 results of earlier runs are there, too "
        "(label-0002_seed-00000001.png, label-0003_seed-00000002.png); manifest-1.json has what their manifest said)\n"
    )
    kept = json.loads(Path("out/manifest-1.json").read_text(encoding="utf-8"))
    assert kept == {**before, "items": before["items"][1:]}
    assert [item["label"] for item in manifest("out")["items"]] == [1, 5]
    run(*edits(own)["inpaint"], "--out", "out")
    assert "(4 results of earlier runs are there, too (label-0001_seed-00000000.png, " in capsys.readouterr().out
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


def test_a_handful_of_many_classes(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nobody means a thousand pictures by naming no class; an evaluation set is of all."""
    pipe = toy_pipeline()
    sizes = ModernConfig(vocab_size=8, num_classes=25, axes=(8, 8), width=16, layers=1, heads=2)
    config = dataclasses.replace(pipe.config, class_names=(), sampling=Sampling(steps=1))
    Pipeline(pipe.tokenizer, ModernTransformer(sizes), config, "cpu").save_pretrained("many")
    some = [0, 2, 5, 7, 10, 12, 15, 17, 20, 22]
    with pytest.warns(UserWarning, match="none given") as caught:
        run("generate", "--model", "many", "--count", 2, "--out", "few")
    assert [str(one.message) for one in caught] == [
        f"labels: none given, so 10 of 25 classes ({', '.join(map(str, some))}); --labels all for every one"
    ]
    assert [item["label"] for item in manifest("few")["items"]] == [label for label in some for _ in range(2)]
    assert capsys.readouterr().out == "20 images, grid.png and manifest.json in few\n"
    run("generate", "--model", "many", "--labels", "all", "--out", "all")
    run("generate", "--model", "many", "--per-class", 1, "--out", "set")
    assert len(manifest("all")["items"]) == len(manifest("set")["items"]) == 25


def test_a_manifest_of_another_order(own: Path, place: Path) -> None:
    """The model was trained anew and numbers its classes otherwise: what is made again has the same names."""
    run("generate", "--model", own, "--labels", "one,two", "--out", "first")
    told = manifest("first")
    told["model"] = str(Path("turned"))
    Path("first/manifest.json").write_text(json.dumps(told), encoding="utf-8")
    pipe = Pipeline.from_pretrained(own, device="cpu")
    pipe.config = dataclasses.replace(pipe.config, class_names=tuple(reversed(pipe.config.class_names)))
    pipe.save_pretrained("turned")
    run("generate", "--manifest", "first/manifest.json", "--out", "second")
    assert [item["label"] for item in manifest("second")["items"]] == [8, 7]
    assert manifest("second")["classes"] == {"7": "two", "8": "one"}


@pytest.mark.parametrize("names", [[str(n) for n in range(12)], ["2019", "2020", "2021"], ["01", "02", "03"]])
def test_classes_named_by_numbers(names: list[str], place: Path) -> None:
    """The case: ``--labels 2`` of folders 0 to 11 gave the class 10; the edits' ``--label`` did, too."""
    listed = tuple(sorted(names))
    pipe = toy_pipeline((32, 32), patch=4)
    sizes = ModernConfig(vocab_size=8, num_classes=len(listed), axes=(8, 8), width=16, layers=1, heads=2)
    config = dataclasses.replace(pipe.config, class_names=listed, sampling=Sampling(steps=1))
    Pipeline(pipe.tokenizer, ModernTransformer(sizes), config, "cpu").save_pretrained("m")
    run("generate", "--model", "m", "--labels", ",".join(names[:3]), "--out", "g")
    assert [listed[item["label"]] for item in manifest("g")["items"]] == names[:3]
    for task, words in edits(Path("m")).items():
        run(*words, "--label", names[2], "--out", task)
        assert list(manifest(task)["classes"].values()) == [names[2]]
    Path("label.yaml").write_text(f"label: {names[2]!r}\n", encoding="utf-8")
    words = [word for word in edits(Path("m"))["inpaint"] if word not in ("--label", "four")]
    run(*words, "--config", "label.yaml", "--out", "yaml")
    assert list(manifest("yaml")["classes"].values()) == [names[2]]


def test_options_lie_over_config_files(own: Path, place: Path) -> None:
    """Also those that stand before them."""
    Path("s.yaml").write_text("labels: three\nsampling: {steps: 4}\ncount: 2\n", encoding="utf-8")
    run(
        "generate", "--model", own, "--labels", "six", "--config", "s.yaml", "--sampling.temperature", 0.5, "--out", "o"
    )
    told = manifest("o")
    assert [item["label"] for item in told["items"]] == [6, 6]
    assert told["sampling"] == used(dataclasses.replace(OWN, steps=4, temperature=0.5))
