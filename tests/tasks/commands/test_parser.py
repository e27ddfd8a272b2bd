"""The command line: models and folders that are wrong, the parser, and real processes.

Commands run in this process through ``main``; a few run as people start them. See also ``test_image.py`` and
``test_cli_train.py``.
"""

import dataclasses
import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from maskgen.sampling.settings import Sampling
from maskgen.tasks.cli import build_parser, main
from maskgen.tasks.commands import parser
from maskgen.tasks.commands.generate import GENERATED
from maskgen.tasks.pipeline import Pipeline
from tests.support import CLASS_NAMES, make_tiny_pipeline
from tests.tasks.commandline import edits, files, refused, run

ROOT = Path(__file__).resolve().parents[3]


def start(*words: object, cwd: Path, launcher: tuple[str, ...] = ("-m", "maskgen"), **extra: str) -> Any:
    """A real process."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **extra}
    command = [sys.executable, *launcher, *[str(word) for word in words]]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)


def broken(model: Path, folder: Path, kind: str) -> None:
    """A copy of the model with one thing wrong."""
    make_tiny_pipeline(folder)
    weights, description = folder / "transformer" / "model.safetensors", folder / "pipeline.json"
    if kind == "truncated":
        weights.write_bytes(weights.read_bytes()[:1000])
    elif kind == "foreign weights":
        weights.write_bytes((folder / "tokenizer" / "model.safetensors").read_bytes())
    elif kind == "foreign folder":
        description.write_text('{"_class_name": "Other"}', encoding="utf-8")
    elif kind == "misspelt":
        description.write_text(description.read_text(encoding="utf-8").replace('"steps"', '"stepz"'), encoding="utf-8")
    elif kind == "unknown class":
        config = folder / "transformer" / "config.json"
        config.write_text(
            config.read_text(encoding="utf-8").replace("maskgen.models.", "evil.module."), encoding="utf-8"
        )


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("truncated", "transformer/model.safetensors: truncated or not a safetensors file"),
        ("foreign weights", "weights do not fit: "),
        ("foreign folder", "pipeline.json: not a maskgen model"),
        ("misspelt", "stepz"),
        ("unknown class", "class 'evil.module.ModernTransformer' is not maskgen's; import its module"),
    ],
)
def test_broken_models(kind: str, message: str, model: Path, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broken(model, place / "broken", kind)
    assert message in refused(capsys, "generate", "--model", "broken", "--out", "out")
    assert message in refused(capsys, "info", "--model", "broken")
    assert not Path("out").exists()


def test_models_that_are_not_there(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "(perhaps maskgit-imagenet256 or" in refused(capsys, "generate", "--model", "Maskgit_imagent256")
    assert "no such model folder; train one (maskgen demo)" in refused(capsys, "generate", "--model", "nowhere")
    assert "the Hugging Face Hub cannot be reached" in refused(capsys, "generate", "--model", "some/one")
    assert "no pipeline.json" in refused(capsys, "generate", "--model", place)
    assert "model: got none, expected a model folder, a published name or a Hub repository" in refused(
        capsys, "generate"
    )
    assert files(place) == ["image.png", "mask.png"]


def test_a_model_of_another_modality(
    model: Path, place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Pipeline.from_pretrained

    def smelling(*args: Any, **kwargs: Any) -> Pipeline:
        pipe = real(*args, **kwargs)
        pipe.tokenizer.__dict__["modality"] = "scent"
        return pipe

    monkeypatch.setattr(Pipeline, "from_pretrained", smelling)
    for words in edits(model).values():
        assert "needs an image model, but this model's modality is scent" in refused(capsys, *words, "--out", "out")
    told = refused(capsys, "generate", "--model", model, "--out", "out")
    assert told == f"generate needs a model of {' or '.join(GENERATED)}, but this model's modality is scent"
    assert not Path("out").exists()


@pytest.mark.parametrize("out", ["image.png", "image.png/deeper", "/proc/maskgen/out"])
def test_folders_that_cannot_be_written(
    out: str, model: Path, configs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    commands: list[tuple[object, ...]] = [
        ("generate", "--model", model),
        *edits(model).values(),
        ("demo",),
        ("train", "tokenizer", "--config", "tokenizer.yaml"),
        ("train", "transformer", "--config", "transformer.yaml", "--tokenizer", model / "tokenizer"),
    ]
    before = files(configs)
    for words in commands:
        line = refused(capsys, *words, "--out", out)
        assert line.startswith(f"out: cannot write to {out} (")
        assert line.endswith("; name another folder")
    assert files(configs) == before


def test_a_full_disk_leaves_no_half_picture(model: Path, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A real limit: files may not grow over 500 bytes, which every picture here does."""
    usual = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500, usual[1]))
    try:
        with pytest.raises(SystemExit) as stopped:
            run("generate", "--model", model, "--out", "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, usual)
    assert stopped.value.code == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last == "maskgen: error: out/label-0000_seed-00000000.png: cannot be written (File too large)"
    assert files(Path("out")) == []


def test_info(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("info", "--model", model)
    found = json.loads(capsys.readouterr().out)
    assert found["modality"] == "image"
    assert (found["signal_size"], found["token_axes"]) == ([32, 32], [8, 8])
    assert found["class_names"] == list(CLASS_NAMES)
    assert found["tokenizer"]["class"] == "VQGAN"
    assert found["tokenizer"]["vocab_size"] == 32
    stored = load_file(model / "transformer" / "model.safetensors")
    assert found["transformer"]["parameters"] == sum(tensor.numel() for tensor in stored.values())
    run("info")
    found = json.loads(capsys.readouterr().out)
    assert found["torch"] == torch.__version__.split("+")[0]
    assert {"python", "maskgen", "devices"} <= found.keys()


def test_print_config(configs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What is printed can be read back and means the same."""
    for words in (
        ("train", "tokenizer", "--config", "tokenizer.yaml", "--settings.steps", "9", "--out", "out"),
        ("train", "transformer", "--config", "transformer.yaml", "--tokenizer", "t", "--out", "out"),
        ("generate", "--labels", "3,4", "--sampling.steps", "5"),
    ):
        with pytest.raises(SystemExit) as stopped:
            run(*words, "--print_config")
        assert stopped.value.code == 0
        printed = capsys.readouterr().out
        Path("printed.yaml").write_text(printed, encoding="utf-8")
        with pytest.raises(SystemExit):
            run(*words[: 2 if words[0] == "train" else 1], "--config", "printed.yaml", "--print_config")
        assert capsys.readouterr().out == printed
        assert yaml.safe_load(printed).get("settings", {}).get("steps", 9) in (9, 4)


def test_class_paths_of_before(configs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """They are taken, and one line says what they are now; in YAML and on the command line."""
    Path("old.yaml").write_text(
        Path("transformer.yaml").read_text(encoding="utf-8").replace("maskgen.models.modern.", "maskgen.modern."),
        encoding="utf-8",
    )
    words = ("train", "transformer", "--tokenizer", "t", "--out", "out", "--print_config")
    told = []
    for changes in (
        ("--config", "transformer.yaml"),
        ("--config", "old.yaml"),
        ("--config", "transformer.yaml", "--data", "maskgen.tasks.datasets.Folder"),
    ):
        with pytest.raises(SystemExit) as stopped:
            run(*words, *changes)
        assert stopped.value.code == 0
        told.append(capsys.readouterr())
    assert told[0].out == told[1].out
    assert told[0].out == told[2].out
    assert [one.err for one in told] == [
        "",
        "maskgen: note: maskgen.modern.ModernTransformer is maskgen.models.modern.ModernTransformer now\n",
        "maskgen: note: maskgen.tasks.datasets.Folder is maskgen.tasks.data.Folder now\n",
    ]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--transformer", "maskgen.models.ModernTransformr"), "maskgen.models.ModernTransformer, maskgen."),
        (("--transformer", "ModernTransformr"), "maskgen.models.ModernTransformer, maskgen."),
        (
            ("--transformer.class_path", "maskgen.modernn.ModernTransformr"),
            "maskgen.models.ModernTransformer, maskgen.",
        ),
        (("--data", "maskgen.tasks.data.images.Digts"), "maskgen.tasks.data.Digits; see `maskgen train transformer"),
    ],
)
def test_classes_that_are_none(
    words: tuple[str, ...], message: str, configs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ("train", "transformer", "--config", "transformer.yaml", "--tokenizer", "t", "--out", "out")
    line = refused(capsys, *common, *words)
    key, name = words[0].removeprefix("--").removesuffix(".class_path"), words[1].rpartition(".")[2]
    assert line.startswith(f"{key}: no class {name!r} is known; the nearest are {message}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Base:
    """What all have.

    Attributes:
        count: how many.
        sampling: all settings.
    """

    count: int = 1
    sampling: Sampling | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shared(Base):
    """What edits have.

    Attributes:
        model: which one.
    """

    model: str


def test_shared_options(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Fields of a dataclass before the ``*`` are options of a command like its own."""
    seen: list[tuple[Shared, str]] = []

    def loop(run: Shared, *, audio: str, seam: float = 0.5) -> None:
        """Make a loop.

        Args:
            run: see there.
            audio: a sound.
            seam: seconds.
        """
        seen.append((run, audio))

    def told(*words: str) -> str:
        with pytest.raises(SystemExit):
            parser.run(["loop", *words], {"loop": loop})
        return "".join(capsys.readouterr())

    Path("run.yaml").write_text("model: m\ncount: 3\nsampling: {steps: 9}\n", encoding="utf-8")
    parser.run(["loop", "--audio", "a", "--config", "run.yaml", "--count", "4"], {"loop": loop})
    assert seen == [(Shared(model="m", count=4, sampling=Sampling(steps=9)), "a")]
    printed = yaml.safe_load(told("--audio", "a", "--config", "run.yaml", "--print_config"))
    assert (printed["count"], printed["model"], printed["sampling"]["steps"]) == (3, "m", 9)
    for text in ("how many. (type: int, default: 1)", "which one. (required, type: str)", "a sound."):
        assert text in told("--help")
    assert "--model: missing; give it; see `maskgen loop --help`" in told("--audio", "a")
    for line, message in (
        ("cuont: 3", "'cuont' is not accepted; see `maskgen loop --help`"),
        ("count:", "count: got nothing, expected int;"),
        ("sampling: 5", "sampling: expected Sampling, got 5;"),
    ):
        Path("wrong.yaml").write_text(f"model: m\n{line}\n", encoding="utf-8")
        assert message in told("--audio", "a", "--config", "wrong.yaml")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "a command is missing; give one of those that --help lists; see `maskgen --help`"),
        (("generat",), "generat: no such command; perhaps generate is meant"),
        (("xyz",), "xyz: no such command; expected one of train, evaluate, demo, tokenize, generate"),
        (("train",), "a command is missing; give one of those that --help lists; see `maskgen train --help`"),
        (("train", "tokenisers"), "tokenisers: no such command; perhaps tokenizer is meant"),
        (
            ("train", "tokenizer"),
            "--tokenizer, --data, --out: missing; give them; see `maskgen train tokenizer --help`",
        ),
        (("inpaint", "--model", "m"), "--image, --mask: missing; give them; see `maskgen inpaint --help`"),
        (("generate", "--lables", "3"), "unrecognized arguments: --lables 3; perhaps --labels is meant"),
        (("inpaint", "--model=m", "--image=i", "--mask=m", "--box=1,2"), "unrecognized arguments: --box=1,2; see"),
        (("predict-frames", "--model=m", "--video=v", "--frames=1"), "perhaps --clip.frames is meant"),
        (("tokenize", "--tokenizer=t", "--out=o", "--data=SoundFolder"), "got nothing, expected int; give one"),
        (("generate", "--labels"), "expected one argument"),
    ],
)
def test_commands_that_are_none(words: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    line = refused(capsys, *words)
    assert message in line
    assert "--help`" in line


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("--box", "1,2,3,4", "--names", "a,b"), {"box": (1, 2, 3, 4), "names": "a,b"}),
        (("--box=1,2,3,4",), {"box": (1, 2, 3, 4)}),
        (("--box", "[1, 2, 3, 4]", "--sampling.guidance.interval", "0.2,0.9"), {"interval": (0.2, 0.9)}),
        (("--box", "1,2,3,4", "--either", "x,y"), {"either": "x,y"}),
    ],
)
def test_lists_without_brackets(words: tuple[str, ...], expected: dict[str, Any]) -> None:
    seen: dict[str, Any] = {}

    def cut(
        *,
        box: tuple[int, int, int, int],
        names: str = "",
        either: str | list[str] = "",
        sampling: Sampling = Sampling(),  # noqa: B008
    ) -> None:
        """Cut.

        Args:
            box: four numbers.
            names: text, commas and all.
            either: text wins.
            sampling: a group.
        """
        seen.update(box=box, names=names, either=either, interval=sampling.guidance.interval)

    parser.run(["cut", *words], {"cut": cut})
    assert {name: seen[name] for name in expected} == expected


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (("--help",), ("train", "--help"), ("generate", "--help"), ("demo", "--help")):
        with pytest.raises(SystemExit) as stopped:
            run(*words)
        assert stopped.value.code == 0
        assert "usage: maskgen" in capsys.readouterr().out
    assert build_parser().prog == "maskgen"


def test_our_own_mistakes_keep_their_traceback(
    model: Path, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def bug(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("ours")

    monkeypatch.setenv("MASKGEN_TRACEBACK", "1")
    with pytest.raises(ValueError, match="label: got 10"):
        run("generate", "--model", model, "--labels", 10, "--out", "out")
    monkeypatch.delenv("MASKGEN_TRACEBACK")
    monkeypatch.setitem(GENERATED, "image", dataclasses.replace(GENERATED["image"], make=bug))
    with pytest.raises(AssertionError, match="ours"):
        run("generate", "--model", model, "--out", "out")


def test_ctrl_c(model: Path, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupt(*args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setitem(GENERATED, "image", dataclasses.replace(GENERATED["image"], make=interrupt))
    with pytest.raises(SystemExit) as stopped:
        run("generate", "--model", model, "--out", "out")
    assert stopped.value.code == 130
    assert capsys.readouterr().err == "maskgen: interrupted\n"


@pytest.mark.parametrize("where", ["elsewhere", "root"])
def test_processes(where: str, model: Path, tmp_path: Path) -> None:
    cwd = ROOT if where == "root" else tmp_path
    done = start("generate", "--model", model, "--labels", "3", "--out", tmp_path / "out", cwd=cwd)
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr
    assert files(tmp_path / "out") == ["grid.png", "label-0003_seed-00000000.png", "manifest.json"]
    main(["generate", "--model", str(model), "--labels", "3", "--out", str(tmp_path / "here")])
    again, first = (tmp_path / name / "label-0003_seed-00000000.png" for name in ("here", "out"))
    assert again.read_bytes() == first.read_bytes()


def test_a_process_says_one_line(model: Path, tmp_path: Path) -> None:
    done = start("generate", "--model", model, "--labels", "30", "--out", tmp_path / "out", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "maskgen: error: label: got 30, expected 0 to 9\n"
    assert not (tmp_path / "out").exists()


def test_accelerate_launch(configs: Path) -> None:
    """From the root of the repository, whose folder ``tokenizers`` must not hide the package of that name."""
    launcher = ("-m", "accelerate.commands.launch", "--cpu", "--num_processes", "1", "-m", "maskgen")
    words = ("train", "tokenizer", "--config", configs / "tokenizer.yaml", "--out", configs / "launched")
    done = start(*words, cwd=ROOT, launcher=launcher)
    assert done.returncode == 0, done.stderr
    run("train", "tokenizer", "--config", "tokenizer.yaml", "--out", "here")
    launched, here = (load_file(configs / name / "model.safetensors") for name in ("launched", "here"))
    assert all(torch.allclose(tensor, here[name], atol=1e-5) for name, tensor in launched.items())
