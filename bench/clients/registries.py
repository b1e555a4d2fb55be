"""Installs clients from PyPI and npm into a cache folder, each once."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

CACHE = Path.home() / ".cache" / "nexus-gateway-clients"
LIMIT_S = 900


@dataclass(frozen=True)
class Packages:
    """What is installed together, into one folder of the cache.

    Args:
        folder: its name.
        names: the packages, as pip or npm take them.
        npm: whether they are npm's.
    """

    folder: str
    names: tuple[str, ...]
    npm: bool = False

    @property
    def _root(self) -> Path:
        return CACHE / self.folder

    @property
    def bin(self) -> Path:
        """The folder of its commands."""
        return self._root / ("node_modules/.bin" if self.npm else "bin")

    def install(self, *, newest: bool) -> None:
        """Install what is missing.

        Args:
            newest: install the newest versions even if there are some.

        Raises:
            RuntimeError: the registry has refused or cannot be reached.
        """
        done = self._root / "installed"
        if done.exists() and not newest:
            return
        print(f"installing {' '.join(self.names)} …", file=sys.stderr, flush=True)
        self._root.mkdir(parents=True, exist_ok=True)
        if self.npm:
            if self != NODE:
                NODE.install(newest=newest)
            (self._root / "package.json").write_text('{"private": true}', encoding="utf-8")
            npm = ("npm", "install", "--no-audit", "--no-fund", "--loglevel=error")
            _call(*npm, *self.names, folder=self._root)
        else:
            _call(sys.executable, "-m", "venv", str(self._root), folder=CACHE)
            pip = (str(self.bin / "python"), "-m", "pip", "install", "-qq", "--upgrade")
            _call(*pip, *self.names, folder=CACHE)
        done.touch()

    def version(self, name: str) -> str:
        """Return the installed version of a package."""
        if self.npm:
            manifest = self._root / "node_modules" / name / "package.json"
            return str(json.loads(manifest.read_text(encoding="utf-8"))["version"])
        (found,) = self._root.glob(f"lib/*/site-packages/{name.replace('-', '_')}-*.dist-info")
        return found.name.removesuffix(".dist-info").rpartition("-")[2]

    def program(self, source: Path) -> Path:
        """Return a program of ours from where it finds these packages: node looks beside it."""
        return Path(shutil.copy(source, self._root)) if self.npm else source


# Some clients need a newer node than most systems have; npm has it as a package. npm itself must
# run on it, too: it installs older versions of what needs a newer node.
NODE = Packages("node", ("node@22",), npm=True)


def _call(*command: str, folder: Path) -> None:
    path = os.pathsep.join((str(NODE.bin), os.environ["PATH"]))
    try:
        subprocess.run(  # noqa: S603 - the packages of our own table
            command, cwd=folder, check=True, timeout=LIMIT_S, env={**os.environ, "PATH": path}
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise RuntimeError(f"cannot install: {error}") from None
