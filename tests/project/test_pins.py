"""Hosts install exactly the reviewed dependencies: pinned, hashed, and nothing more."""

from __future__ import annotations

import ast
import configparser
import re
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[2]
PINS = ROOT / "deploy" / "requirements.txt"
LINE = re.compile(
    r"(?P<name>[a-z0-9-]+)==(?P<version>[0-9][0-9a-z.]*)(?: ; [^\\]+)?"
    r"(?P<hashes>(?: --hash=sha256:[0-9a-f]{64})+)"
)
BUILT_WITH = {"setuptools"}


def logical_lines() -> list[str]:
    text = PINS.read_text(encoding="utf-8").replace(" \\\n    ", " ")
    return [line for line in text.splitlines() if line and not line.lstrip().startswith("#")]


def pins() -> dict[str, Version]:
    matches = (LINE.fullmatch(line) for line in logical_lines())
    return {canonicalize_name(m["name"]): Version(m["version"]) for m in matches if m}


def requirements(section: str, option: str) -> list[Requirement]:
    """Return the requirements in an option of setup.cfg."""
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg", encoding="utf-8")
    lines = parser[section][option].splitlines()
    return [Requirement(line) for line in lines if line.strip()]


def runtime() -> list[Requirement]:
    extras = [requirements("options.extras_require", extra) for extra in ("fast", "metrics")]
    return sum(extras, requirements("options", "install_requires"))


@pytest.mark.proves("S-09")
def test_every_line_is_a_pin_with_hashes() -> None:
    assert len(logical_lines()) == len(pins()) > 10
    for line in logical_lines():
        assert LINE.fullmatch(line), line.split(" --hash")[0]


@pytest.mark.proves("S-09")
def test_pins_satisfy_the_requirements() -> None:
    for requirement in runtime():
        pinned = pins()[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(pinned), requirement
    build = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    named = re.search(r'requires = \["(setuptools[^"]*)"\]', build)
    assert named
    assert Requirement(named[1]).specifier.contains(pins()["setuptools"])


@pytest.mark.proves("S-09")
def test_exactly_the_needed_packages_are_pinned() -> None:
    needed: set[str] = set()
    waiting = [canonicalize_name(requirement.name) for requirement in runtime()]
    while waiting:
        name = waiting.pop()
        if name in needed:
            continue
        needed.add(name)
        for text in metadata.requires(name) or ():
            further = Requirement(text)
            # typing-extensions goes with Python 3.13; the pins are for every version.
            if further.marker is None or further.marker.evaluate({"python_version": "3.11"}):
                waiting.append(canonicalize_name(further.name))
    assert set(pins()) == needed | BUILT_WITH


@pytest.mark.proves("S-09")
def test_the_core_needs_three_packages() -> None:
    names = [requirement.name for requirement in requirements("options", "install_requires")]
    assert names == ["aiohttp", "aiohttp-sse", "python-dotenv"]


@pytest.mark.proves("S-09")
def test_the_host_installs_only_the_pins() -> None:
    script = (ROOT / "deploy" / "install.sh").read_text(encoding="utf-8")
    installs = [line for line in script.splitlines() if "pip install" in line]
    assert len(installs) == 2
    assert "--require-hashes -r deploy/requirements.txt" in installs[0]
    assert "--no-deps --no-build-isolation ." in installs[1]


# The versions that fixed what is known, from the projects' advisories: in aiohttp smuggling,
# unbounded memory, endless loops and a read out of bounds, in orjson unbounded recursion.
HOLES = {
    "aiohttp": ["3.9.4", "3.10.11", "3.13.3", "3.13.4", "3.14.3"],
    "orjson": ["3.9.15", "3.11.6"],
    "python-dotenv": [],
    "aiohttp-sse": [],
    "uvloop": [],
    "prometheus-client": [],
}


@pytest.mark.proves("S-10")
@pytest.mark.parametrize("requirement", runtime(), ids=lambda requirement: requirement.name)
def test_no_accepted_version_has_a_known_hole(requirement: Requirement) -> None:
    (floor,) = [Version(s.version) for s in requirement.specifier if s.operator == ">="]
    for fixed in HOLES[requirement.name]:
        assert floor >= Version(fixed)
    assert requirement.specifier.contains(metadata.version(requirement.name))


@pytest.mark.proves("S-10")
def test_aiohttp_parses_no_form() -> None:
    for path in (ROOT / "nexus_gateway").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                call = ast.unparse(node.func)
                assert not call.endswith(("request.post", ".multipart", ".add_static")), path
