"""Imports only go down: tasks -> tokenizers -> core, and the core knows no modality."""

import ast
import importlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# What a tokenizer may take from the core: its training loop, streams, folders, seeded randomness, float32 settings and the
# readers of foreign weight files. Never the model, its parts, the loss or the sampler: a tokenizer that knew them could not
# be swapped.
CORE_FOR_TOKENIZERS = {"training", "data", "checkpoint", "noise", "precision", "weights"}

# Libraries of one modality, or of the floors above, that the core must not load.
MODALITY = (
    *("torchvision", "decord", "torchaudio", "encodec", "transformers", "gradio", "lpips", "sklearn"),
    *("vector_quantize_pytorch", "PIL", "xformers"),
)


def python_files(folder: str) -> list[Path]:
    """Files really under a folder of the root: ``os.walk`` does not enter the three links inside ``maskgen/``."""
    return sorted(Path(at, name) for at, _, names in os.walk(ROOT / folder) for name in names if name.endswith(".py"))


def import_name(path: Path) -> str:
    """Import name of a product file; a package keeps its ``.__init__``, from where its relative imports start."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts if parts[0] == "maskgen" else ("maskgen", *parts))


def imports(text: str, module: str) -> Iterator[str]:
    """Full names of all that a module imports, wherever in the file, TYPE_CHECKING and importlib included."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = module.split(".")[: -node.level] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            yield from (f"{base}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and "import_module" in ast.unparse(node.func):
            yield from (arg.value for arg in node.args if isinstance(arg, ast.Constant) and isinstance(arg.value, str))


def goes_up(name: str, floor: str) -> bool:
    """Whether code on ``floor`` (maskgen, tokenizers or tasks) may not import ``name``."""
    package, _, rest = name.partition(".")
    if package in ("tokenizers", "tasks", "configs"):
        return True  # ours only while the root is on the path, and `tokenizers` is Hugging Face's
    part = rest.partition(".")[0]
    if package != "maskgen" or floor == "tasks":
        return False
    if floor == "maskgen":
        return part in ("tokenizers", "tasks")
    if f"{name}.".startswith("maskgen.weights.files."):
        return False  # the readers of foreign weight files, which know no model
    return part not in CORE_FOR_TOKENIZERS | {"tokenizers", "configs", "", "__version__"}


PRODUCT = [path for floor in ("maskgen", "tokenizers", "tasks") for path in python_files(floor)]
CORE = [import_name(path).removesuffix(".__init__") for path in python_files("maskgen") if path.stem != "__main__"]


@pytest.mark.parametrize("path", PRODUCT, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_down(path: Path) -> None:
    names = imports(path.read_text(encoding="utf-8"), import_name(path))
    up = {name for name in names if goes_up(name, path.relative_to(ROOT).parts[0])}
    if path == ROOT / "maskgen" / "__main__.py":  # the one way up, so that `python -m maskgen` works
        assert up == {"maskgen.tasks.cli.main"}
    else:
        assert up == set()


@pytest.mark.parametrize(
    ("line", "floor", "up"),
    [
        ("from maskgen.tokenizers import toy", "maskgen", True),
        ("if TYPE_CHECKING:\n    import maskgen.tasks.cli", "maskgen", True),
        ("def f():\n    from . import tasks", "maskgen", True),
        ("importlib.import_module('maskgen.tasks')", "maskgen", True),
        ("from maskgen.training import trainer", "tokenizers", False),
        ("from maskgen.tokenizers.base import Tokenizer", "tokenizers", False),
        ("from maskgen.sampling.loop import sample", "tokenizers", True),
        ("from maskgen.models import bert", "tokenizers", True),
        ("from maskgen.tasks.media.images import save", "tokenizers", True),
        ("from ..tasks import media", "tokenizers", True),
        ("import tokenizers", "tasks", True),
        ("from maskgen.sampling.loop import sample", "tasks", False),
    ],
)
def test_the_walk_sees(line: str, floor: str, up: bool) -> None:
    module = "maskgen.x" if floor == "maskgen" else f"maskgen.{floor}.x"
    assert any(goes_up(name, floor) for name in imports(line, module)) is up


def test_the_allow_list_names_real_modules() -> None:
    assert {f"maskgen.{part}" for part in CORE_FOR_TOKENIZERS} <= set(CORE)


# Torch is loaded once; then each module is imported alone in a forked copy of that clean process.
ALONE = """
import importlib, json, os, sys
import torch
modality = sys.argv[1].split(",")
assert not set(modality) & set(sys.modules), "torch itself loads one of them"
for name in sys.argv[2:]:
    if os.fork() == 0:
        try:
            importlib.import_module(name)
            told = sorted(set(modality) & set(sys.modules))
        except BaseException as error:
            told = [repr(error)]
        os.write(1, (json.dumps([name, told]) + "\\n").encode())
        os._exit(0)
    os.wait()
"""


def loaded_by(names: list[str], folder: Path) -> dict[str, list[str]]:
    """For each module, imported alone in a clean process: which of MODALITY got loaded, or the error."""
    command = [sys.executable, "-c", ALONE, ",".join(MODALITY), *names]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(line) for line in done.stdout.splitlines())


def test_the_core_knows_no_modality(tmp_path: Path) -> None:
    loaded = loaded_by(CORE, tmp_path)
    assert set(loaded) == set(CORE)
    # accelerate could pull some in by itself (it looks for transformers and others); the test below tells when it does.
    assert {name: found for name, found in loaded.items() if found} == {}


def test_accelerate_alone_loads_none_of_them(tmp_path: Path) -> None:
    """maskgen.training.trainer imports accelerate: if only this and the trainer fail, a new accelerate is the cause."""
    assert loaded_by(["accelerate"], tmp_path) == {"accelerate": []}


def test_tokenizers_is_hugging_faces_from_the_root() -> None:
    code = "import sys; assert sys.path[0] == '', sys.path; import tokenizers as t; print(t.Tokenizer, t.__file__)"
    env = {key: value for key, value in os.environ.items() if key != "PYTHONSAFEPATH"}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "site-packages" in done.stdout


def test_tokenizers_is_hugging_faces_under_pytest() -> None:
    """A ``tests/tokenizers/__init__.py`` without a ``tests/__init__.py`` would shadow it here."""
    tokenizers = importlib.import_module("tokenizers")
    assert "site-packages" in tokenizers.__file__
    assert hasattr(tokenizers, "Tokenizer")
