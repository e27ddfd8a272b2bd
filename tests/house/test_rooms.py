"""The house has rooms: packages import one way only, no folder is crowded, and each says in a sentence what it is for."""

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.house.test_imports import PRODUCT, ROOT, import_name, imports

MOST_ENTRIES = 14

# Packages of each floor from the lowest up: one imports from those of earlier rows, never from its own row or a later one.
ORDER = (
    ("conditioning", "data", "noise", "precision", "schedules", "weights"),
    ("checkpoint",),
    ("models", "training"),
    ("testing", "sampling"),
    ("objectives", "published"),
    ("tokenizers.base", "tokenizers.settings", "tokenizers.layers"),
    ("tokenizers.quantizers",),
    ("tokenizers.image", "tokenizers.audio"),
    ("tokenizers.video",),
    ("tokenizers.magvit2",),
    ("tokenizers.training",),
    ("tokenizers.published",),
    ("tasks.media",),
    ("tasks.conditions",),
    ("tasks.data", "tasks.model_folder"),
    ("tasks.published",),
    ("tasks.pipeline",),
    ("tasks.image", "tasks.video", "tasks.audio"),
    ("tasks.training",),
    ("tasks.evaluation",),
    ("tasks.commands",),
    ("tasks.demo",),
    ("tasks.cli",),
)
RANK = {f"maskgen.{name}": rank for rank, row in enumerate(ORDER) for name in row}
MODULES = {import_name(path): path for path in PRODUCT if path.name not in ("__init__.py", "__main__.py")}
FOLDERS = sorted({path.parent for path in PRODUCT})
CROWDED = [*("maskgen", "tokenizers", "tasks", "configs", "docs", "tests", "benchmarks", "examples"), ".github"]


def package(module: str) -> str:
    """The package of ``ORDER`` that a module belongs to."""
    parts = module.split(".")
    return ".".join(parts[: 3 if parts[1] in ("tokenizers", "tasks") else 2])


def module_of(name: str) -> str | None:
    """The product module that an imported name means; doors are looked through by their package's name alone."""
    while name and name not in MODULES:
        name = name.rpartition(".")[0]
    return name or None


def uses() -> Iterator[tuple[str, str]]:
    """Pairs of module and module it imports, wherever the import stands."""
    for name, path in MODULES.items():
        for imported in imports(path.read_text(encoding="utf-8"), name):
            found = module_of(imported) or door(imported)
            if found is not None and found != name:
                yield name, found


def door(name: str) -> str | None:
    """``maskgen.sampling.sample`` comes through the door of ``maskgen.sampling``, which may be imported itself."""
    rooms = [
        room for room in (name, name.rpartition(".")[0]) if any(module.startswith(f"{room}.") for module in MODULES)
    ]
    return f"{rooms[0]}.__init__" if rooms and rooms[0].count(".") else None


def cycle(graph: dict[str, set[str]]) -> list[str]:
    """The nodes of a cycle, or none."""
    done: set[str] = set()

    def visit(node: str, above: list[str]) -> list[str]:
        if node in above:
            return [*above[above.index(node) :], node]
        if node in done:
            return []
        for other in sorted(graph.get(node, ())):
            if found := visit(other, [*above, node]):
                return found
        done.add(node)
        return []

    return next((found for node in sorted(graph) if (found := visit(node, []))), [])


def test_every_package_has_its_place() -> None:
    assert sorted({package(module) for module in MODULES} ^ set(RANK)) == []


def test_packages_import_downwards() -> None:
    wrong = {
        (package(user), package(used))
        for user, used in uses()
        if package(user) != package(used) and RANK[package(used)] >= RANK[package(user)]
    }
    assert wrong == set()


def test_no_cycle_between_folders() -> None:
    graph: dict[str, set[str]] = defaultdict(set)
    for user, used in uses():
        folders = [module.rpartition(".")[0] for module in (user, used)]
        if folders[0] != folders[1]:
            graph[folders[0]].add(folders[1])
    # Files beside the rooms of a floor stand for themselves, see test_packages_import_downwards.
    for floor in ("maskgen", "maskgen.tokenizers", "maskgen.tasks"):
        graph.pop(floor, None)
    assert cycle(graph) == []


def test_no_cycle_between_files() -> None:
    graph: dict[str, set[str]] = defaultdict(set)
    for user, used in uses():
        graph[user].add(used)
    assert cycle(graph) == []


def test_cycles_are_seen() -> None:
    assert cycle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]
    assert cycle({"a": {"b", "c"}, "b": {"c"}}) == []


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_folder_says_what_it_is_for(folder: Path) -> None:
    if folder in (ROOT / "tokenizers", ROOT / "tasks"):
        return  # these two may not be packages, see test_links.py
    text = ast.get_docstring(ast.parse((folder / "__init__.py").read_text(encoding="utf-8"))) or ""
    assert re.fullmatch(r"[^\n]{3,}[.]", text), f"{folder}: one sentence in __init__.py, got {text!r}"


def folders_of_the_house() -> list[Path]:
    tops = [ROOT / name for name in CROWDED if (ROOT / name).is_dir()]
    below = [path for top in tops for path in top.rglob("*") if path.is_dir() and not path.is_symlink()]
    return [path for path in [*tops, *below] if not {"__pycache__", "fixtures"} & set(path.parts)]


@pytest.mark.parametrize("folder", folders_of_the_house(), ids=lambda path: str(path.relative_to(ROOT)))
def test_no_folder_is_crowded(folder: Path) -> None:
    hidden = ("__pycache__", "__init__.py", "py.typed")
    entries = [path.name for path in folder.iterdir() if path.name not in hidden and not path.is_symlink()]
    assert len(entries) <= MOST_ENTRIES, f"{folder}: {sorted(entries)}"
