"""The house keeps its own rules: floors, sizes, and nothing of one machine."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
LONGEST_FILE = 300
LONGEST_FUNCTION = 40
SOURCES = sorted([*ROOT.glob("nexus_gateway/**/*.py"), *ROOT.glob("plugins/*.py")])
# Written apart, so that this file does not find itself.
MACHINE_PATH = re.compile(
    r"(?<![\w.:/\-])/(?:" + "|".join(["wo" + "rk", "ro" + "ot", "ho" + "me"]) + r")/\w"
)
TEXT_FILES = ("*.py", "*.cfg", "*.toml", "*.md", "*.in", "Makefile", "Procfile", ".env.example")
# What a plugin may import: the contract, and what it is made of.
CONTRACT = {f"nexus_gateway.{name}" for name in ("provider", "answer", "mending")}
NOT_OURS = {".git", ".venv", ".peers", "build", "dist"}


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def texts() -> Iterator[Path]:
    for folder, below, files in os.walk(ROOT):
        below[:] = set(below) - NOT_OURS
        patterns = ("*",) if folder.endswith(".ci") else (*TEXT_FILES, ".gitignore")
        for name in files:
            if any(fnmatch(name, pattern) for pattern in patterns):
                yield Path(folder, name)


def test_imports_keep_to_the_floors() -> None:
    lint = Path(sys.executable).parent / "lint-imports"
    done = subprocess.run(
        [str(lint), "--config", "setup.cfg", "--no-cache"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_files_stay_small(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= LONGEST_FILE


def body_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Count a function's lines, its docstring left out."""
    lines = (function.end_lineno or function.lineno) - function.lineno + 1
    if ast.get_docstring(function) is None:
        return lines
    doc = function.body[0]
    return lines - ((doc.end_lineno or doc.lineno) - doc.lineno + 1)


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_functions_stay_small(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
    assert [f.name for f in found if body_lines(f) > LONGEST_FUNCTION] == []


def test_nothing_names_a_machine() -> None:
    named = [
        name_of(path) for path in texts() if MACHINE_PATH.search(path.read_text(encoding="utf-8"))
    ]
    assert named == []


def test_plugins_import_only_the_package() -> None:
    for path in ROOT.glob("plugins/*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("nexus_gateway"):
                assert node.module in CONTRACT
