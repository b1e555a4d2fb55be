"""The tables of faults, promises and rules are complete, and the tests that they name exist."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NO_TEST = "no test: "


def ids(letter: str, *spans: tuple[int, int], dash: str = "-") -> list[str]:
    return [f"{letter}{dash}{n:02d}" for first, last in spans for n in range(first, last + 1)]


PROMISES = [(1, 6), (10, 17), (20, 25), (30, 42), (50, 59)]
DOCS = {
    "docs/reliability.md": [*ids("F", (1, 75), dash=""), *ids("I", *PROMISES)],
    "docs/security.md": ids("S", (1, 23)),
}
ROW = re.compile(r"\| ([FIS]-?\d\d) \|(.*)\| ([^|]*) \|", re.MULTILINE)
NAMED = re.compile(r"`((?:tests|nexus_gateway/testing)/(?:\w+/)*\w+\.py(?:::\w+)+)`")


def rows(doc: str) -> list[tuple[str, str]]:
    """Return the ids of a document's rows, each with its last cell."""
    text = (ROOT / doc).read_text(encoding="utf-8")
    return [(m[1], m[3].strip()) for m in ROW.finditer(text)]


def marks(nodes: list[ast.expr]) -> Iterator[str]:
    """Yield the ids in `pytest.mark.proves(...)`, of decorators or of a module's `pytestmark`."""
    for node in nodes:
        for call in ast.walk(node):
            if isinstance(call, ast.Call) and ast.unparse(call.func) == "pytest.mark.proves":
                for argument in call.args:
                    assert isinstance(argument, ast.Constant), ast.unparse(call)
                    yield str(argument.value)


def walk(
    body: list[ast.stmt], name: str, inherited: frozenset[str]
) -> Iterator[tuple[str, frozenset[str]]]:
    """Yield the tests in a module's or a class's body: name and the ids that it proves."""
    for node in body:
        if isinstance(node, ast.ClassDef):
            more = inherited | frozenset(marks(node.decorator_list))
            yield from walk(node.body, f"{name}::{node.name}", more)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            if node.name.startswith("test_"):
                yield f"{name}::{node.name}", inherited | frozenset(marks(node.decorator_list))
        elif isinstance(node, ast.Assign) and ast.unparse(node.targets[0]).startswith("Test"):
            # A state machine's TestCase, with its class's marks.
            yield f"{name}::{ast.unparse(node.targets[0])}", inherited | _of_class(body, node.value)


def _of_class(body: list[ast.stmt], value: ast.expr) -> frozenset[str]:
    name = ast.unparse(value).partition(".")[0]
    classes = (n for n in body if isinstance(n, ast.ClassDef) and n.name == name)
    return frozenset(m for node in classes for m in marks(node.decorator_list))


@cache
def claims() -> dict[str, frozenset[str]]:
    """Return all tests by `path::name`, each with the ids of its marks."""
    tests: dict[str, frozenset[str]] = {}
    for path in [*ROOT.glob("tests/**/*.py"), *ROOT.glob("nexus_gateway/testing/**/*.py")]:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for_all = [
            node.value
            for node in tree.body
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "pytestmark"
        ]
        module_marks = frozenset(marks(for_all))
        tests |= dict(walk(tree.body, path.relative_to(ROOT).as_posix(), module_marks))
    return tests


@pytest.mark.parametrize("doc", DOCS)
def test_every_id_has_one_row(doc: str) -> None:
    assert [id for id, _ in rows(doc)] == DOCS[doc]


@pytest.mark.parametrize("doc", DOCS)
def test_every_row_names_its_marked_tests(doc: str) -> None:
    for id, cell in rows(doc):
        named = NAMED.findall(cell)
        left = NAMED.sub("", cell).replace(",", "").strip()
        if named:
            assert not left, f"{id}: {left}"
        else:
            assert left.startswith(NO_TEST), f"{id}: {left}"
            assert len(left) > len(NO_TEST) + 20, f"{id}: give a reason"
        for name in named:
            assert name in claims(), f"{id}: there is no {name}"
            assert id in claims()[name], f"{name} is not marked with {id}"


def test_every_mark_is_in_the_tables() -> None:
    named = {(id, name) for doc in DOCS for id, cell in rows(doc) for name in NAMED.findall(cell)}
    known = {id for ids_of_doc in DOCS.values() for id in ids_of_doc}
    for name, proved in claims().items():
        assert proved <= known, name
        assert {(id, name) for id in proved} <= named, name
