"""What README and docs tell people to type works: commands parse, those that need no training run, Python runs."""

import re
import shlex
from pathlib import Path

import pytest
import torch
import yaml
from accelerate.commands.launch import launch_command_parser
from PIL import Image, ImageDraw

ROOT = Path(__file__).resolve().parents[2]
README = ROOT / "README.md"
PAGES = [README, ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md")), *sorted(ROOT.glob("examples/*/*.md"))]
LAUNCHES = sorted((ROOT / "docs" / "accelerate").glob("*.yaml"))
CONFIGS = sorted((ROOT / "configs").glob("**/*.yaml"))
PHOTO, FRAME = (64, 64), (64, 48)
RUN = {
    *("generate", "inpaint", "outpaint", "swap-class", "info", "models", "infill", "continue-audio", "vary", "loop"),
    *("predict-frames", "interpolate", "inpaint-video", "outpaint-video"),
}
"""Sub-commands that only need a model: they run where the model is a folder of ours, beside tiny untrained ones."""


def blocks(page: Path, language: str) -> list[tuple[int, str]]:
    """First line number and text of every fenced block in one language."""
    text = page.read_text(encoding="utf-8")
    found = re.finditer(rf"^```{language}[ \t]*\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    return [(text.count("\n", 0, match.start(1)), match[1]) for match in found]


def split(script: str) -> list[list[str]]:
    """The words of every command of a script; what ``bash -c`` runs stands for itself, comments are left out."""
    found = []
    # A quote may go over lines, so comments go first.
    for line in re.split(r"\n(?=(?:[^']*'[^']*')*[^']*$)|&&", script.replace("\\\n", " ")):
        words = shlex.split(line.removeprefix("$ "), comments=True)
        while words and (re.match(r"[A-Z_]+=", words[0]) or words[0] == "export"):
            words.pop(0)
        if "bash" in words and "-c" in words:
            found += split(words[words.index("-c") + 1])
        elif words:
            found.append(words)
    return found


def commands(page: Path) -> list[list[str]]:
    """The commands of a page, and those that a config names at its top."""
    if page.suffix == ".yaml":
        lines = re.findall(r"^# (?:Command: )?((?:maskgen|accelerate) [^`]*)$", page.read_text("utf-8"), re.MULTILINE)
        return [words for line in lines for words in split(line)]
    return [words for _, block in blocks(page, "bash") for words in split(block)]


def maskgen_arguments(words: list[str]) -> list[str] | None:
    for i, word in enumerate(words):
        if word.rsplit("/", maxsplit=1)[-1] == "maskgen" and (i == 0 or words[i - 1] == "-m"):
            return words[i + 1 :]
    return None


WITH_COMMANDS = [page for page in [*PAGES, *LAUNCHES, *CONFIGS] if any(map(maskgen_arguments, commands(page)))]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with what the pages take for granted: tiny models, a photo and its mask, a song, a clip, a config."""
    from maskgen.tasks.media.audio.files import save_sound
    from tests.support import make_tiny_pipeline, text_encoder_folder, text_pipeline, tiny_audio_pipeline
    from tests.tasks.media.video import samples as video_samples
    from tests.tasks.video import toys as video_toys

    for name in ("configs", "docs", "examples"):
        (tmp_path / name).symlink_to(ROOT / name)
    make_tiny_pipeline(tmp_path / "runs" / "demo")
    tiny_audio_pipeline().save_pretrained(tmp_path / "runs" / "songs")
    text_pipeline(text_encoder_folder(tmp_path / "clip")).save_pretrained(tmp_path / "runs" / "texts")
    (tmp_path / "prompts.txt").write_text("a red seven\na blue two\n", "utf-8")
    video_toys.pipeline().save_pretrained(tmp_path / "runs" / "clips")
    video_samples.write(tmp_path / "clip.mp4", video_samples.moving(20))
    save_sound(torch.linspace(-0.5, 0.5, 2 * 2000).sin().reshape(2, -1), tmp_path / "song.wav", 1000)
    whole = "tokenizer: runs/mine/tokenizer\n" + (ROOT / "configs" / "my_folder_transformer.yaml").read_text("utf-8")
    (tmp_path / "my.yaml").write_text(whole, "utf-8")
    for name, size in (("a", FRAME), ("b", FRAME), ("clip-mask", FRAME), ("photo", PHOTO), ("mask", PHOTO)):
        picture = Image.radial_gradient("L").resize(size).convert("RGB")
        if "mask" in name:
            picture = Image.new("L", size)
            ImageDraw.Draw(picture).rectangle((16, 16, 47, 47), fill=255)
        picture.save(tmp_path / f"{name}.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("page", WITH_COMMANDS, ids=lambda page: page.name)
def test_commands_parse(page: Path, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from maskgen.tasks.cli import build_parser

    parser, seen, wrong = build_parser(), set[str](), {}
    for words in commands(page):
        if words[0] == "accelerate":
            # What Slurm fills in is a number or a name: a number is both.
            told = launch_command_parser().parse_args([re.sub(r"^\$\w+$", "0", word) for word in words[2:]])
            assert told.config_file is None or Path(told.config_file).is_file(), words
        arguments = maskgen_arguments(words)
        if arguments is None:
            continue
        if arguments[0] in seen:  # a sub-command is set up the first time it is met; a parser is dear
            parser, seen = build_parser(), set()
        seen.add(arguments[0])
        try:
            parser.parse_args(arguments)
        except SystemExit as stopped:
            if stopped.code:  # --help and --print_config stop with 0
                wrong[shlex.join(arguments)] = capsys.readouterr().err
    assert wrong == {}


def test_pages_with_commands_are_seen() -> None:
    assert {"README.md", "data.md", "samplers.md", "scaling.md"} <= {page.name for page in WITH_COMMANDS}
    assert set(CONFIGS) <= set(WITH_COMMANDS)
    assert set(LAUNCHES) & set(WITH_COMMANDS)


@pytest.mark.parametrize("page", [page for page in WITH_COMMANDS if page.suffix == ".md"], ids=lambda page: page.name)
def test_commands_run(page: Path, place: Path) -> None:
    """Those of models that are folders here, in the page's order; published names are not fetched."""
    from maskgen.tasks.cli import main

    for words in commands(page):
        arguments = maskgen_arguments(words) or [""]
        model = arguments[arguments.index("--model") + 1] if "--model" in arguments else "."
        compiles = "--sampling.speed.compile" in arguments  # takes half a minute, and has tests of its own
        if arguments[0] in RUN and Path(model).is_dir() and not compiles:
            main(arguments)


def test_make_targets_exist() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    used = [words[1:] for page in PAGES for words in commands(page) if words[0] == "make"]
    assert used, "the pages show no make command"
    assert {word for words in used for word in words if "=" not in word and not word.startswith("-")} <= targets


def prepared(page: Path) -> dict[str, object]:
    """What the Python of a page takes for granted: a model that takes texts, files of weights, features of a text."""
    if page.name != "published.md":
        return {}
    from maskgen.published.muse.transformer import MuseConfig
    from maskgen.tasks.pipeline import Pipeline
    from tests.core.published.muse.toys import model_of, published_state

    state = published_state(model_of(MuseConfig(axes=(4, 4), width=16, layers=1, text_width=8, self_conditioned=True)))
    pipe = Pipeline.from_pretrained("runs/texts")
    return {"pipe": pipe, "features": torch.randn(2, 3, 8), "batch": 2, "seeds": [0, 1], "state": state}


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")], ids=lambda page: page.name)
def test_python_blocks_run(page: Path, place: Path) -> None:
    """All of a page, in order and in one namespace, beside the tiny models."""
    namespace: dict[str, object] = {"__name__": "page", **prepared(page)}
    for line, code in blocks(page, "python"):
        # The empty lines give a failure the line number it has on the page.
        exec(compile("\n" * line + code, str(page), "exec"), namespace)


@pytest.mark.parametrize("page", LAUNCHES, ids=lambda page: page.name)
def test_launch_files_leave_the_precision_to_the_run(page: Path) -> None:
    """Every config of ours may be launched with each of them: ``settings.mixed_precision`` decides."""
    assert yaml.safe_load(page.read_text("utf-8"))["mixed_precision"] == "no"
