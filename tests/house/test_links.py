"""The links that give the root folders their import names, in the checkout and in the wheel; and links in texts."""

import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LINKED = ("tokenizers", "tasks", "configs")
TEXTS = [path for path in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")] if path.is_file()]


@pytest.mark.parametrize("name", LINKED)
def test_links_are_relative(name: str) -> None:
    link = ROOT / "maskgen" / name
    # In a checkout made with core.symlinks=false git writes small text files instead, and nothing can be imported.
    assert link.is_symlink(), (
        f"{link} is not a symbolic link; on Windows: git config core.symlinks true, check out again"
    )
    assert link.readlink() == Path("..", name)
    assert link.resolve() == ROOT / name


@pytest.mark.parametrize("name", LINKED)
def test_root_folders_are_no_packages(name: str) -> None:
    assert not (ROOT / name / "__init__.py").exists(), f"{name}/__init__.py would shadow other packages of that name"


def test_types_are_shipped() -> None:
    assert (ROOT / "maskgen" / "py.typed").is_file()


def product_files() -> set[str]:
    """Paths, inside a wheel, of every module and every config."""
    # pathlib's rglob does not follow links, so this is the core alone.
    wanted = {path.relative_to(ROOT).as_posix() for path in (ROOT / "maskgen").rglob("*.py")}
    for folder in LINKED:
        for pattern in ("*.py", "*.yaml"):
            wanted |= {"maskgen/" + path.relative_to(ROOT).as_posix() for path in (ROOT / folder).rglob(pattern)}
    return wanted


def test_the_wheel_holds_everything(tmp_path: Path) -> None:
    """Built from a copy: an in-tree build leaves a build/ folder whose stale files would end up in the next wheel."""
    copy = tmp_path / "copy"
    copy.mkdir()
    for name in ("maskgen", *LINKED):
        shutil.copytree(ROOT / name, copy / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    # No isolation: the build uses the setuptools of the dev extra, and needs no network.
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-q", "-w", "wheels", "."]
    done = subprocess.run(command, cwd=copy, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = (copy / "wheels").glob("maskgen-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        held = set(archive.namelist())
    assert {"maskgen/py.typed", "maskgen/tokenizers/image/vqgan.py", "maskgen/tasks/cli.py"} <= held
    assert any(re.fullmatch(r"maskgen/configs/[^/]+\.yaml", name) for name in held)
    assert "maskgen/published/maskgit.py" in product_files()
    assert sorted(product_files() - held) == []
    assert not [name for name in held if name.startswith(("tests/", "tokenizers/", "tasks/", "configs/"))]


@pytest.mark.parametrize("text", TEXTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_texts_link_to_what_exists(text: Path) -> None:
    targets = re.findall(r"\]\(([^)\s#]+)[^)]*\)", text.read_text(encoding="utf-8"))
    local = [target for target in targets if "://" not in target and not target.startswith("mailto:")]
    assert [target for target in local if not (text.parent / target).exists()] == []
