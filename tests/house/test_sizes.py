"""Small files, small functions, short signatures: the limits of docs/architecture.md, counted."""

import ast
import io
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = (
    "maskgen",
    "tokenizers",
    "tasks",
    "tests",
    "benchmarks",
    "scripts",
    "examples",
)  # rglob does not follow links
FILES = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]

FILE_LINES = 400
FUNCTION_LINES = 60
POSITIONAL = 8
PARAMETERS = 12
Function = ast.FunctionDef | ast.AsyncFunctionDef


def functions(tree: ast.Module) -> Iterator[Function]:
    return (node for node in ast.walk(tree) if isinstance(node, Function))


def code_lines(text: str, tree: ast.Module) -> set[int]:
    """Numbers of the lines that hold code: not blank, not only a comment, not part of a docstring."""
    silent = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in silent:
            lines.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(tree):
        if isinstance(node, Function | ast.ClassDef | ast.Module) and ast.get_docstring(node, clean=False) is not None:
            lines.difference_update(range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1))
    return lines


def oversized(text: str) -> list[str]:
    """What breaks a limit in one file, in words."""
    tree = ast.parse(text)
    code, found = code_lines(text, tree), []
    if (count := len(text.splitlines())) > FILE_LINES:
        found.append(f"{count} lines in the file, at most {FILE_LINES}")
    for function in functions(tree):
        where = f"line {function.lineno}: {function.name}"
        own = len(code & set(range(function.lineno, (function.end_lineno or 0) + 1)))
        if own > FUNCTION_LINES:
            found.append(f"{where} has {own} code lines, at most {FUNCTION_LINES}")
        named = function.args.posonlyargs + function.args.args
        positional = len(named) - (bool(named) and named[0].arg in ("self", "cls"))
        if positional > POSITIONAL:
            found.append(f"{where} has {positional} parameters before the *, at most {POSITIONAL}")
        if (total := positional + len(function.args.kwonlyargs)) > PARAMETERS:
            found.append(f"{where} has {total} parameters, at most {PARAMETERS}")
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_limits(path: Path) -> None:
    assert oversized(path.read_text(encoding="utf-8")) == []


def test_the_count_leaves_out_words() -> None:
    filler = "".join(f"    x{i} = {i}\n" for i in range(58))
    within = f'def f():\n    """One.\n\n    Two.\n    """\n    # why\n\n{filler}    return 0\n'
    assert oversized(within) == []
    assert oversized(within.replace("# why", "y = 0")) == ["line 1: f has 61 code lines, at most 60"]


def test_the_count_sees_parameters_and_files() -> None:
    assert oversized("class A:\n    def f(self, a, b, c, d, e, f, g, h): ...\n") == []
    assert "9 parameters before the *" in oversized("def f(a, b, c, d, e, f, g, h, i): ...")[0]
    assert "13 parameters," in oversized("def f(a, *, b, c, d, e, f, g, h, i, j, k, l, m): ...")[0]
    assert "401 lines" in oversized("\n" * 401)[0]


def test_product_files_are_found() -> None:
    assert {"maskgen", "tokenizers", "tasks", "tests"} <= {path.relative_to(ROOT).parts[0] for path in FILES}
    assert not [path for path in FILES if path.relative_to(ROOT).parts[:2] == ("maskgen", "tokenizers")]
