"""Evaluation sets: the same pictures however many processes make them and however often they are stopped."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import maskgen.tasks.evaluation.made.making
from maskgen.sampling.settings import Sampling
from maskgen.tasks.evaluation.made.writing import write_evaluation_set
from maskgen.tasks.evaluation.sets.processes import process_state
from maskgen.tasks.image.generation import generate
from tests.support import tiny_pipeline
from tests.tasks.commandline import files, pixels, refused, run
from tests.tasks.evaluation.support import ONE_AT_A_TIME, together

ROOT = Path(__file__).resolve().parents[4]
IDS = [label for label in range(5) for _ in range(3)]  # 15 pictures, 4 blocks of 4
NAMES = [f"label-{label:04d}_seed-{100 + i:08d}.png" for i, label in enumerate(IDS)]


def write(out: Path, **changes: Any) -> int:
    plain: dict[str, Any] = {"seed": 100, "sampling": Sampling(steps=2), "batch_size": 4}
    with ONE_AT_A_TIME:
        pipe = tiny_pipeline()
    return write_evaluation_set(pipe, IDS, out, **(plain | changes))


def replaced(monkeypatch: pytest.MonkeyPatch, make: Callable[..., Any]) -> None:
    """Put something in place of ``generate``."""
    monkeypatch.setattr(maskgen.tasks.evaluation.made.making, "generate", make)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.png")}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("set")
    assert write(out) == 15
    return out


def test_the_set(whole: Path) -> None:
    assert files(whole) == sorted([*NAMES, "manifest.json"])
    images = generate(tiny_pipeline(), IDS, seeds=range(100, 115), steps=2)
    for name, image in zip(NAMES, images, strict=True):
        with Image.open(whole / name) as found:
            assert found.tobytes() == image.tobytes()
    manifest = json.loads((whole / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["complete"] is True
    assert manifest["items"][4] == {"file": NAMES[4], "label": 1, "seed": 104}
    assert manifest["sampling"]["steps"] == 2


@pytest.mark.parametrize("count", [2, 3, 7])
def test_any_number_of_processes(count: int, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each picture is made once, and bit-equal, also with more processes than blocks."""
    made: list[int] = []

    def make(*args: Any, **kwargs: Any) -> Any:
        made.extend(kwargs["seeds"])
        with ONE_AT_A_TIME:
            return generate(*args, **kwargs)

    replaced(monkeypatch, make)
    together(count, lambda state: made.append(-write(tmp_path, state=state)))
    assert contents(tmp_path) == contents(whole)
    assert sorted(seed for seed in made if seed > 0) == list(range(100, 115))
    assert sum(number for number in made if number < 0) == -15


def test_an_interrupted_set_goes_on(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[int]] = []

    def stop(*args: Any, **kwargs: Any) -> Any:
        asked.append(list(kwargs["seeds"]))
        if len(asked) == 3:
            raise KeyboardInterrupt
        return generate(*args, **kwargs)

    replaced(monkeypatch, stop)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path)
    assert len(contents(tmp_path)) == 8
    assert json.loads((tmp_path / "manifest.json").read_text(encoding="utf-8"))["complete"] is False
    (tmp_path / NAMES[1]).unlink()
    before = {name: (tmp_path / name).stat().st_mtime_ns for name in contents(tmp_path)}
    asked.clear()
    replaced(monkeypatch, watched(asked))
    assert sum(together(2, lambda state: write(tmp_path, state=state))) == 8  # two finish what one had begun
    assert sorted(asked) == [[100, 101, 102, 103], [108, 109, 110, 111], [112, 113, 114]]  # 104 to 107 were there
    assert contents(tmp_path) == contents(whole)
    assert before == {name: (tmp_path / name).stat().st_mtime_ns for name in before}  # not one was written again
    asked.clear()
    assert write(tmp_path) == 0
    assert asked == []
    assert json.loads((tmp_path / "manifest.json").read_text(encoding="utf-8"))["complete"] is True


def watched(asked: list[list[int]]) -> Callable[..., Any]:
    def make(*args: Any, **kwargs: Any) -> Any:
        asked.append(list(kwargs["seeds"]))
        with ONE_AT_A_TIME:
            return generate(*args, **kwargs)

    return make


def test_another_set_in_the_same_folder(whole: Path, tmp_path: Path) -> None:
    write(tmp_path)
    before = contents(tmp_path)
    for changes, what in (({"seed": 7}, r"items\[0\]\.file"), ({"sampling": Sampling(steps=3)}, r"sampling\.steps")):
        with pytest.raises(
            ValueError, match=rf"holds other samples \({what}: \S+ before, \S+ now.*\); name another folder"
        ):
            write(tmp_path, **changes)
    assert write(tmp_path, batch_size=2) == 0
    assert contents(tmp_path) == before
    run_dir = tmp_path / "few"
    run_dir.mkdir()
    (run_dir / "manifest.json").write_text('{"task": "generate", "items": []}', encoding="utf-8")
    with pytest.raises(ValueError, match="holds other samples"):
        write(run_dir)
    with pytest.raises(ValueError, match="got 15 images, batch_size 0; expected 1 or more of each"):
        write(tmp_path / "none", batch_size=0)


def test_the_command(model: Path, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    common = ("generate", "--model", model, "--steps", 2, "--seed", 5)
    run(*common, "--labels", "all", "--per-class", 2, "--batch-size", 8, "--out", "set")
    assert capsys.readouterr().out == "20 images and manifest.json in set\n"
    assert len(files(Path("set"))) == 21
    run(*common, "--labels", "all", "--count", 2, "--batch-size", 8, "--out", "few")
    assert {name for name in files(Path("few")) if name.startswith("label")} == set(contents(Path("set")))
    assert contents(Path("set")).items() <= contents(Path("few")).items()
    run(*common, "--labels", "three,nine", "--per_class", 1, "--out", "two")
    assert [item["label"] for item in json.loads(Path("two/manifest.json").read_text(encoding="utf-8"))["items"]] == [
        3,
        9,
    ]
    run("generate", "--manifest", "set/manifest.json", "--out", "again", "--batch-size", 8)
    assert contents(Path("again")) == contents(Path("set"))
    for words, message in (
        (("--per-class", 2, "--count", 2), "count: give either count"),
        (("--per-class", 0), "per_class: got 0, expected at least 1"),
        (("--per-class", 3, "--out", "set"), "set: holds other samples"),
        (("--per-klass", 3), "--per_klass"),
    ):
        assert message in refused(capsys, *common, *words)


def test_one_process_without_a_launcher() -> None:
    state = process_state("cpu")
    assert (state.num_processes, state.is_main_process, state.device.type) == (1, True, "cpu")


def test_two_real_processes(model: Path, tmp_path: Path) -> None:
    """Started by torchrun, as ``accelerate launch`` does for several GPUs (for several CPU processes it wants MPI)."""
    words = [
        "generate",
        "--model",
        str(model),
        "--labels",
        "all",
        "--per-class",
        "2",
        "--steps",
        "2",
        "--batch-size",
        "3",
    ]
    run(*words, "--out", tmp_path / "one", "--device", "cpu")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "ACCELERATE_USE_CPU": "true"}
    # Notes what it saw (in a file each: lines of two processes run into each other on one stdout), then does what
    # ``python -m maskgen`` does.
    code = (
        "from pathlib import Path\n"
        "from maskgen.tasks.evaluation.made.writing import process_state; from maskgen.tasks.cli import main\n"
        "state = process_state()\n"
        "Path(__file__).with_name(f'process-{state.process_index}-of-{state.num_processes}').touch()\n"
        "main()"
    )
    (tmp_path / "start.py").write_text(code, encoding="utf-8")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run(
        [*launcher, str(tmp_path / "start.py"), *words, "--out", str(tmp_path / "two")],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert {path.name for path in tmp_path.glob("process-*")} == {"process-0-of-2", "process-1-of-2"}
    assert done.stdout.count("20 images and manifest.json in") == 1
    assert contents(tmp_path / "two") == contents(tmp_path / "one")


def test_accelerate_launch(model: Path, tmp_path: Path) -> None:
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "1", "-m", "maskgen"]
    words = ["generate", "--model", str(model), "--labels", "3", "--per-class", "2", "--out", str(tmp_path / "out")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*launcher, *words], cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert pixels(tmp_path / "out" / "label-0003_seed-00000001.png").shape == (32, 32, 3)
