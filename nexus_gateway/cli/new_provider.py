"""`nexus-gateway new-provider`: write a plugin from the templates in `scaffold/`."""

from __future__ import annotations

import argparse
import keyword
import re
import shlex
import time
from collections.abc import Iterator, Mapping
from importlib import metadata, resources
from pathlib import Path
from string import Template

from nexus_gateway import provider
from nexus_gateway.discovery import NAME, OURS, PROVIDERS, prefix
from nexus_gateway.errors import ConfigError

_OUR_PACKAGES = frozenset({"nexus_gateway", "nexus_gateway_plugins"})
# What the written tests import beside the contract.
_IN_TESTS = frozenset({"Chunk", "ProviderConformance", "Received", "Recording", "Wire"})
_SUFFIX = ".tmpl"
# Files whose template has another name: hidden, or named after the provider.
_PATHS = {
    "gitignore": ".gitignore",
    "module.py": "$module.py",
    "test.py": "tests/test_$identifier.py",
}


def new_provider(arguments: argparse.Namespace) -> int:
    """Write a provider's distribution into a folder that is new or empty.

    Raises:
        ConfigError: the name cannot be used, or the folder cannot.
    """
    _check_name(arguments.name)
    words = _words(arguments.name)
    folder = Path(arguments.dir or words["distribution"])
    files = dict(sorted(_files(arguments.dialect, words)))
    try:
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise ConfigError([f"{str(folder)!r} exists and is not an empty folder."])
        for name, text in files.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError([f"{str(folder)!r} cannot be written: {error.strerror}."]) from None
    print("\n".join(_report(folder, files)))
    return 0


def _check_name(name: str) -> None:
    """Raise ConfigError if a new provider cannot have this name."""
    taken = next((ours for ours in _our_names() if prefix(ours) == prefix(name)), None)
    if not NAME.fullmatch(name):
        reason = (
            "a name begins with a letter, ends with a letter or digit and contains only a-z, 0-9, "
            "- and _"
        )
    elif name in PROVIDERS.reserved or _module(name) in _OUR_PACKAGES:
        reason = "that name is reserved"
    elif taken:
        reason = f"{taken} comes with the gateway"
    else:
        return
    raise ConfigError([f"a provider cannot be called {name!r}: {reason}."])


def _our_names() -> Iterator[str]:
    for point in metadata.entry_points(group=PROVIDERS.group):
        if point.dist and point.dist.name == OURS:
            yield point.name


def _module(name: str) -> str:
    return "nexus_" + name.replace("-", "_")


def _words(name: str) -> dict[str, str]:
    """Return the templates' variables."""
    parts = [part.capitalize() for part in re.split(r"[-_]+", name)]
    return {
        "name": name,
        "title": " ".join(parts),
        "class_name": _class_name("".join(parts)),
        "module": _module(name),
        "identifier": name.replace("-", "_"),
        "distribution": f"nexus-{name}",
        "prefix": prefix(name),
        "host": name.replace("_", "-"),
        "year": str(time.localtime().tm_year),
    }


def _class_name(joined: str) -> str:
    """Return a class name that clashes with no other name in the written modules."""
    taken = keyword.iskeyword(joined) or joined in _IN_TESTS or hasattr(provider, joined)
    return f"Nexus{joined}" if taken else joined


def _files(dialect: str, words: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Yield the path and the text of every file."""
    scaffold = resources.files("nexus_gateway.cli") / "scaffold"
    for part in ("common", dialect):
        for template in (scaffold / part).iterdir():
            name = template.name.removesuffix(_SUFFIX)
            if name != template.name:
                text = Template(template.read_text(encoding="utf-8"))
                path = Template(_PATHS.get(name, name)).substitute(words)
                yield path, text.substitute(words)


def _report(folder: Path, files: Mapping[str, str]) -> Iterator[str]:
    yield f"wrote into {folder}:"
    yield from (f"  {name}" for name in files)
    yield "\nnext:"
    yield f"  cd {shlex.quote(str(folder))}"
    yield "  pip install -e '.[test]'"
    yield "  pytest"
    yield '\nThen change what is marked "CHANGE ME". README.md describes the rest.'
