"""Two runs in one folder: the second one waits for the first, or says so and changes nothing."""

import subprocess
import sys
from pathlib import Path

import pytest
from filelock import FileLock

import maskgen.training.run
from tests.core.toys import equal, fit, weights
from tests.core.training.many_processes import run_processes
from tests.core.training.test_many_processes import modeling, tokens, train

SHORT = {"steps": 4, "checkpoint_every": 2, "validate_every": 0}


def held(folder: Path) -> "subprocess.Popen[str]":
    """Another process that has the folder, as a run has that outlived its launcher."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = f"lock = filelock.FileLock({str(folder / '.lock')!r})"
    code = "\n".join(("import filelock", lock, "lock.acquire()", "print('held', flush=True)", "input()"))
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    other = subprocess.Popen([sys.executable, "-c", code], text=True, **pipes)  # type: ignore[call-overload]
    assert other.stdout.readline() == "held\n"
    return other  # type: ignore[no-any-return]


def files(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def train_hurriedly(out: Path) -> None:
    """In a process of its own: the patience stays changed."""
    maskgen.training.run.PATIENCE = 0.1
    train("bert", out, **SHORT)


def test_the_second_run_leaves_the_first_one_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    train("bert", out, **SHORT)
    before = files(out)
    with held(out) as other:
        monkeypatch.setattr(maskgen.training.run, "PATIENCE", 0.1)
        with pytest.raises(ValueError, match=r"run: another run trains into this folder .* name another folder"):
            train("bert", out, **{**SHORT, "steps": 8})
        assert "waiting 0 s for its end" in capfd.readouterr().out
        assert files(out) == before
        other.kill()  # the folder is free without anyone's doing
    train("bert", out, **{**SHORT, "steps": 8})
    assert (out / "checkpoints" / "step-00000008").is_dir()


def test_an_older_run_may_finish_its_last_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = fit(modeling("bert"), tokens(), tmp_path / "plain", **SHORT)
    with held(tmp_path / "run") as other:
        monkeypatch.setattr("tqdm.tqdm.write", lambda line: other.communicate("end\n"))
        waited = fit(modeling("bert"), tokens(), tmp_path / "run", **SHORT)
    assert equal(weights(plain), weights(waited))


def test_all_processes_of_a_run_are_told(tmp_path: Path) -> None:
    out, said = tmp_path / "run", tmp_path / "said"
    with held(out) as other:
        assert run_processes(2, train_hurriedly, out, said=said) == [1, 1]
        other.kill()
    assert said.read_text(encoding="utf-8").count("ValueError: ") == 2
    assert run_processes(2, train_hurriedly, out) == [0, 0]


def test_a_file_system_without_locks_is_not_guarded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(self: FileLock, timeout: float) -> None:
        raise NotImplementedError("FileSystem does not appear to support flock")

    monkeypatch.setattr(FileLock, "acquire", no_locks)
    train("bert", tmp_path / "run", **SHORT)
    assert (tmp_path / "run" / "model.safetensors").is_file()
