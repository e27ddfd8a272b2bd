"""What the README tells people to type works: commands parse, make targets exist, Python runs."""

import re
import shlex
from pathlib import Path

import pytest
import torch
from PIL import Image, ImageDraw

ROOT = Path(__file__).resolve().parents[2]
README = ROOT / "README.md"
PHOTO_SIZE = (64, 64)


def blocks(language: str) -> list[tuple[int, str]]:
    """First line number and text of every fenced block in one language."""
    text = README.read_text(encoding="utf-8")
    found = re.finditer(rf"^```{language}[ \t]*\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    return [(text.count("\n", 0, match.start(1)), match[1]) for match in found]


def commands() -> list[list[str]]:
    """The words of every shell command, with lines joined and comments, prompts and variables taken off."""
    found = []
    for _, block in blocks("bash"):
        for line in re.split(r"\n|&&|;", block.replace("\\\n", " ")):
            words = shlex.split(line.removeprefix("$ "), comments=True)
            while words and re.match(r"[A-Z_]+=", words[0]):
                words.pop(0)
            if words:
                found.append(words)
    return found


def maskgen_arguments(words: list[str]) -> list[str] | None:
    for i, word in enumerate(words):
        if word.rsplit("/", maxsplit=1)[-1] == "maskgen" and (i == 0 or words[i - 1] == "-m"):
            return words[i + 1 :]
    return None


def test_maskgen_commands_parse(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from maskgen.tasks.cli import build_parser

    monkeypatch.chdir(ROOT)
    parsed = [found for words in commands() if (found := maskgen_arguments(words)) is not None]
    assert parsed, "the README shows no maskgen command"
    wrong = {}
    for arguments in parsed:
        try:
            build_parser().parse_args(arguments)
        except SystemExit as stopped:
            if stopped.code:  # --help and --print_config stop with 0
                wrong[shlex.join(arguments)] = capsys.readouterr().err
    assert wrong == {}


def test_make_targets_exist() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    used = [words[1:] for words in commands() if words[0] == "make"]
    assert used, "the README shows no make command"
    assert {word for words in used for word in words if "=" not in word and not word.startswith("-")} <= targets


def draw_photos(code: str) -> None:
    """A picture for every file that the README opens; one called mask gets a white square on black."""
    for name in set(re.findall(r"open\(\s*[\"']([^\"']+\.(?:png|jpe?g|webp))[\"']", code)):
        path = Path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        if "mask" in path.stem:
            picture = Image.new("L", PHOTO_SIZE)
            ImageDraw.Draw(picture).rectangle((16, 16, 47, 47), fill=255)
        else:
            picture = Image.radial_gradient("L").resize(PHOTO_SIZE).convert("RGB")
        picture.save(path)


def test_python_blocks_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of them, in order and in one namespace, beside tiny untrained models, a short song and a short clip."""
    from maskgen.tasks.media.audio.files import save_sound
    from tests.support import make_tiny_pipeline, tiny_audio_pipeline
    from tests.tasks.media.video import samples as video_samples
    from tests.tasks.video import toys as video_toys

    shown = blocks("python")
    assert shown, "the README shows no Python"
    make_tiny_pipeline(tmp_path / "runs" / "demo")
    tiny_audio_pipeline().save_pretrained(tmp_path / "runs" / "songs")
    video_toys.pipeline().save_pretrained(tmp_path / "runs" / "clips")
    video_samples.write(tmp_path / "clip.mp4", video_samples.moving(20))
    save_sound(torch.linspace(-0.5, 0.5, 2 * 2000).sin().reshape(2, -1), tmp_path / "song.wav", 1000)
    monkeypatch.chdir(tmp_path)
    draw_photos("\n".join(code for _, code in shown))
    namespace: dict[str, object] = {"__name__": "readme"}
    for line, code in shown:
        # The empty lines give a failure the line number it has in the README.
        exec(compile("\n" * line + code, str(README), "exec"), namespace)
