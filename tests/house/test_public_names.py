"""What a module offers is what has no underscore; doors list what they offer, and nothing private crosses files."""

import ast
import importlib
from pathlib import Path

import pytest

from tests.house.test_imports import PRODUCT, ROOT, import_name, imports

MODULES = {import_name(path).removesuffix(".__init__"): path for path in PRODUCT if path.stem != "__main__"}
DOORS = {name: path for name, path in MODULES.items() if path.stem == "__init__" and name != "maskgen"}


def top_level(path: Path) -> tuple[set[str], set[str]]:
    """Names that a file defines and those that it imports, also behind an ``if`` or a ``try``."""
    defined, imported = set(), set()
    todo = list(ast.parse(path.read_text(encoding="utf-8")).body)
    while todo:
        node = todo.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            defined.add(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            defined |= {name.id for target in targets for name in ast.walk(target) if isinstance(name, ast.Name)}
        elif isinstance(node, ast.Import | ast.ImportFrom):
            imported |= {alias.asname or alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.If | ast.Try | ast.ExceptHandler):
            todo += ast.iter_child_nodes(node)
    return defined, imported


@pytest.mark.parametrize("name", DOORS)
def test_a_door_offers_what_it_lists(name: str) -> None:
    module, (_, imported) = importlib.import_module(name), top_level(DOORS[name])
    listed = getattr(module, "__all__", [])
    assert len(listed) == len(set(listed)), f"{name}.__all__ names something twice"
    assert sorted(set(listed) ^ imported) == []
    assert [item for item in listed if not hasattr(module, item) or item.startswith("_")] == []


@pytest.mark.parametrize("name", sorted(set(MODULES) - set(DOORS) - {"maskgen"}))
def test_names_are_imported_from_where_they_are_defined(name: str) -> None:
    """No private name of another file, and no name that the other file only imported itself."""
    wrong = []
    for used in imports(MODULES[name].read_text(encoding="utf-8"), name):
        module, _, item = used.rpartition(".")
        if module not in MODULES or used in MODULES or module in DOORS or module == "maskgen":
            continue
        if item.startswith("_") or item not in top_level(MODULES[module])[0]:
            wrong.append(used)
    assert wrong == []


def test_modules_are_found() -> None:
    assert {"maskgen.sampling.loop", "maskgen.tokenizers.image.vqgan", "maskgen.tasks.cli"} <= set(MODULES)
    assert ROOT / "tasks" / "image" / "__init__.py" in DOORS.values()
