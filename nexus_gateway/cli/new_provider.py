"""`nexus-gateway new-provider`."""

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
# What the written tests import from elsewhere than the contract.
_IN_TESTS = frozenset({"Chunk", "ProviderConformance", "Received", "Recording", "Wire"})
_SUFFIX = ".tmpl"
# Where a file goes whose template cannot have its name: it depends on the provider's, or is hidden.
_PLACES = {
    "gitignore": ".gitignore",
    "module.py": "$module.py",
    "test.py": "tests/test_$identifier.py",
}


def new_provider(arguments: argparse.Namespace) -> int:
    """Write a provider's distribution into a folder that is new or empty.

    Raises:
        ConfigError: the name cannot be used, or the folder cannot.
    """
    words = _words(_fit(arguments.name))
    folder = Path(arguments.dir or words["distribution"])
    files = dict(sorted(_files(arguments.dialect, words)))
    try:
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise ConfigError([f"{str(folder)!r} is there already and is not an empty folder."])
        for place, text in files.items():
            path = folder / place
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError([f"{str(folder)!r} cannot be written: {error.strerror}."]) from None
    print("\n".join(_report(folder, files)))
    return 0


def _fit(name: str) -> str:
    """Return a name that a new provider may have.

    Raises:
        ConfigError: it may not.
    """
    if not NAME.fullmatch(name):
        raise ConfigError(
            [
                f"a provider cannot be called {name!r}: its name begins with a letter, ends with "
                "a letter or digit and holds only a-z, 0-9, - and _."
            ]
        )
    if name in PROVIDERS.reserved or _module(name) in _OUR_PACKAGES:
        raise ConfigError([f"a provider cannot be called {name!r}: that name is reserved."])
    if taken := next((ours for ours in _ours() if prefix(ours) == prefix(name)), None):
        raise ConfigError(
            [f"a provider cannot be called {name!r}: {taken} comes with the gateway."]
        )
    return name


def _ours() -> Iterator[str]:
    """Give the names of the providers that come with the gateway."""
    for point in metadata.entry_points(group=PROVIDERS.group):
        if point.dist and point.dist.name == OURS:
            yield point.name


def _module(name: str) -> str:
    return "nexus_" + name.replace("-", "_")


def _words(name: str) -> dict[str, str]:
    """Return what stands in the templates' places."""
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
    """Return a name for the class that nothing else in the written modules has."""
    taken = keyword.iskeyword(joined) or joined in _IN_TESTS or hasattr(provider, joined)
    return f"Nexus{joined}" if taken else joined


def _files(dialect: str, words: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Give the text of every file by its place in the folder."""
    scaffold = resources.files("nexus_gateway.cli") / "scaffold"
    for part in ("common", dialect):
        for template in (scaffold / part).iterdir():
            name = template.name.removesuffix(_SUFFIX)
            if name != template.name:
                text = Template(template.read_text(encoding="utf-8"))
                place = Template(_PLACES.get(name, name)).substitute(words)
                yield place, text.substitute(words)


def _report(folder: Path, files: Mapping[str, str]) -> Iterator[str]:
    """Give the lines that tell what was written and what to do next."""
    yield f"wrote into {folder}:"
    yield from (f"  {place}" for place in files)
    yield "\nnext:"
    yield f"  cd {shlex.quote(str(folder))}"
    yield "  pip install -e '.[test]'"
    yield "  pytest"
    yield '\nThen change what is marked "CHANGE ME"; README.md has the rest.'
