"""`make` on a fresh machine, a second time, and after an install that failed: all without installing anything."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
INSTALL_DEMO = '-c constraints.txt -e ".[demo]"'
INSTALL_DEV = '-c constraints.txt -e ".[dev]"'

# Stands for python3.11: `-m venv` puts a copy of it at .venv/bin/python, `-m pip` notes its arguments, or fails.
FAKE_PYTHON = """#!/bin/sh
case "$2" in
    venv) mkdir -p "$4/bin" && cp "$0" "$4/bin/python" && cp "$0" "$4/bin/maskgen" ;;
    pip) echo "$@" >>installs.txt; test ! -e offline ;;
esac
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """The files make looks at, in a folder with no environment yet, and a stand-in for python3.11."""
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    fake = tmp_path / "fake-python"
    fake.write_text(FAKE_PYTHON, encoding="utf-8")
    fake.chmod(0o755)
    return tmp_path


def make(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    # These tests may themselves run under `make test`, whose variables must not reach the inner make.
    mine = ("MAKEFLAGS", "MFLAGS", "MAKELEVEL", "MAKEOVERRIDES", "PYTHON", "WORKERS")
    env = {key: value for key, value in os.environ.items() if key not in mine}
    return subprocess.run(["make", *arguments], cwd=folder, env=env, capture_output=True, text=True, check=False)


def told(folder: Path, *arguments: str) -> list[str]:
    done = make(folder, *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_demo_on_a_fresh_machine(checkout: Path) -> None:
    lines = told(checkout, "-n", "demo")
    assert "python3.11 -m venv --clear .venv" in lines
    assert any(line.endswith(INSTALL_DEMO) for line in lines)
    assert lines[-1] == ".venv/bin/maskgen demo"


def test_test_on_a_fresh_machine(checkout: Path) -> None:
    lines = told(checkout, "-n", "test")
    assert any(line.endswith(INSTALL_DEV) for line in lines)
    assert not any(line.endswith(INSTALL_DEMO) for line in lines)
    tools = [line for line in lines if line.startswith(".venv/bin/") and "pip" not in line]
    assert [line.split()[0].rsplit("/")[-1] for line in tools] == ["ruff", "ruff", "mypy", "pytest"]
    assert "-n 2" in tools[-1]


def test_other_targets(checkout: Path) -> None:
    assert told(checkout, "-n", "bench")[-1] == ".venv/bin/python benchmarks/sampling_speed.py"
    assert "pytest" not in "\n".join(told(checkout, "-n", "check"))
    assert "-n 5" in told(checkout, "-n", "test", "WORKERS=5")[-1]
    listed = {line.split()[1] for line in told(checkout, "help") if line.startswith("make ")}
    assert listed == {"demo", "test", "check", "bench", "format", "clean", "help"}
    assert told(checkout) == told(checkout, "help")


def test_a_second_run_installs_nothing(checkout: Path) -> None:
    told(checkout, "demo", "PYTHON=./fake-python")
    assert told(checkout, "demo", "PYTHON=./fake-python") == [".venv/bin/maskgen demo"]
    assert len((checkout / "installs.txt").read_text().splitlines()) == 1


def test_the_dev_set_answers_for_the_demo_set(checkout: Path) -> None:
    told(checkout, ".venv/.installed-dev", "PYTHON=./fake-python")
    assert told(checkout, "demo", "PYTHON=./fake-python") == [".venv/bin/maskgen demo"]


@pytest.mark.parametrize("name", ["pyproject.toml", "constraints.txt"])
def test_a_changed_install_set_is_installed_again(checkout: Path, name: str) -> None:
    told(checkout, "demo", "PYTHON=./fake-python")
    later = (checkout / ".venv" / ".installed-demo").stat().st_mtime + 10
    os.utime(checkout / name, (later, later))
    assert any(line.endswith(INSTALL_DEMO) for line in told(checkout, "-n", "demo"))
    assert not any("venv --clear" in line for line in told(checkout, "-n", "demo"))


def test_a_failed_install_leaves_no_stamp(checkout: Path) -> None:
    (checkout / "offline").touch()
    assert make(checkout, "demo", "PYTHON=./fake-python").returncode != 0
    assert list((checkout / ".venv").glob(".installed-*")) == []
    (checkout / "offline").unlink()
    told(checkout, "demo", "PYTHON=./fake-python")
    assert len((checkout / "installs.txt").read_text().splitlines()) == 2


def test_a_missing_python_is_named(checkout: Path) -> None:
    done = make(checkout, "demo", "PYTHON=python9.99")
    assert done.returncode != 0
    assert "python9.99 is not on the PATH" in done.stderr
    assert not (checkout / ".venv").exists()


def test_clean_keeps_what_was_trained(checkout: Path) -> None:
    told(checkout, "demo", "PYTHON=./fake-python")
    for folder in ("runs/demo", "out", "tasks/__pycache__"):
        (checkout / folder).mkdir(parents=True)
    told(checkout, "clean")
    assert not (checkout / ".venv").exists()
    assert not (checkout / "tasks" / "__pycache__").exists()
    assert (checkout / "runs" / "demo").is_dir()
    assert (checkout / "out").is_dir()


def test_ci_runs_make_test() -> None:
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    assert script.read_text(encoding="utf-8").splitlines()[-1] == "exec make test"
