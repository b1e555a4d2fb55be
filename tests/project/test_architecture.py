"""Imports follow the layers, paths in the docs exist, and no file names a machine."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# Split, so that this file does not match.
MACHINE_PATH = re.compile(
    r"(?<![\w.:/\-])/(?:" + "|".join(["wo" + "rk", "ro" + "ot", "ho" + "me"]) + r")/\w"
)
TEXT_FILES = ("*.py", "*.cfg", "*.toml", "*.md", "*.in", "Makefile", "Procfile", ".env.example")
# What a plugin may import: the contract.
CONTRACT = {"nexus_gateway.provider"}
MAX_ROOT_MODULES = 8
MAX_MODULES = 150
# A module or a folder in backticks; nexus_….py without a folder is an example of a plugin.
MODULE_PATH = re.compile(r"`(?!nexus_\w+\.py)([a-z_]\w*(?:/\w+)*(?:\.py|/))`")
IGNORED = {".git", ".venv", ".peers", "build", "dist"}


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def texts() -> Iterator[Path]:
    for folder, below, files in os.walk(ROOT):
        below[:] = set(below) - IGNORED
        patterns = ("*",) if folder.endswith(".ci") else (*TEXT_FILES, ".gitignore")
        for name in files:
            if any(fnmatch(name, pattern) for pattern in patterns):
                yield Path(folder, name)


def test_imports_follow_the_layers() -> None:
    lint = Path(sys.executable).parent / "lint-imports"
    done = subprocess.run(
        [str(lint), "--config", "setup.cfg", "--no-cache"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_nothing_names_a_machine() -> None:
    matches = [
        name_of(path) for path in texts() if MACHINE_PATH.search(path.read_text(encoding="utf-8"))
    ]
    assert matches == []


def test_plugins_import_only_the_contract() -> None:
    for path in ROOT.glob("plugins/**/*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("nexus_gateway"):
                assert node.module in CONTRACT


def test_modules_named_in_the_docs_exist() -> None:
    docs = [ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]
    named = {
        (name_of(doc), path)
        for doc in docs
        for path in MODULE_PATH.findall(doc.read_text(encoding="utf-8"))
    }
    assert len(named) > 20
    missing = [
        (doc, path)
        for doc, path in named
        if not (ROOT / path).exists() and not (ROOT / "nexus_gateway" / path).exists()
    ]
    assert missing == []


def test_the_number_of_modules_is_limited() -> None:
    package = ROOT / "nexus_gateway"
    modules = [path for path in package.rglob("*.py") if path.name != "__init__.py"]
    assert len([path for path in modules if path.parent == package]) <= MAX_ROOT_MODULES
    assert len(modules) <= MAX_MODULES
