"""What a module offers is what its ``__all__`` says: nothing missing, nothing forgotten."""

import ast
import importlib
import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def modules() -> dict[str, Path]:
    """Import name and file of every product module; ``os.walk`` does not enter the three links."""
    found = {}
    for folder, prefix in (("maskgen", ""), ("tokenizers", "maskgen."), ("tasks", "maskgen.")):
        for parent, _, names in os.walk(ROOT / folder):
            for name in names:
                path = Path(parent, name)
                if path.suffix == ".py" and path.stem not in ("__init__", "__main__"):
                    found[prefix + ".".join(path.relative_to(ROOT).with_suffix("").parts)] = path
    return dict(sorted(found.items()))


MODULES = modules()


def defined(path: Path) -> set[str]:
    """Public classes and functions written at the top level of a file, also those behind an ``if`` or a ``try``."""
    names, todo = set(), list(ast.parse(path.read_text(encoding="utf-8")).body)
    while todo:
        node = todo.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.If | ast.Try | ast.ExceptHandler):
            todo += ast.iter_child_nodes(node)
    return {name for name in names if not name.startswith("_")}


@pytest.mark.parametrize("name", MODULES)
def test_all_is_complete(name: str) -> None:
    module = importlib.import_module(name)
    listed = getattr(module, "__all__", None)
    assert listed is not None, f"{name} has no __all__"
    assert len(listed) == len(set(listed)), f"{name}.__all__ names something twice"
    assert [item for item in listed if not hasattr(module, item)] == [], f"{name}.__all__ names what is not there"
    assert sorted(defined(MODULES[name]) - set(listed)) == [], f"{name}.__all__ leaves these out"


def test_modules_are_found() -> None:
    assert {"maskgen.sampling.loop", "maskgen.tokenizers.image.vqgan", "maskgen.tasks.cli"} <= set(MODULES)
