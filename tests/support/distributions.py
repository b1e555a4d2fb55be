"""A gateway installed from its wheel in a new venv, with providers of other distributions.

The distributions in `tests/distributions` are real: they are built, installed, found by
their entry points and called through a gateway that is installed from its own wheel.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import pytest

ROOT = Path(__file__).resolve().parents[2]
THIRD_PARTIES = ("nexus-echo", "nexus-foreign", "nexus-broken")
NOT_SOURCE = shutil.ignore_patterns(
    *(".*_cache", ".env", ".git", ".hypothesis", ".venv", "__pycache__"),
    *("*.egg-info", "build", "dist"),
)
BUILD = """\
import os, sys
from setuptools import build_meta
wheels, *folders = sys.argv[1:]
for folder in folders:
    os.chdir(folder)
    build_meta.build_wheel(wheels)
"""
# Does in 0.2 s what takes pip 3 s.
INSTALL = (
    *(sys.executable, "-m", "uv", "pip", "install", "--offline", "--no-config", "--no-index"),
    *("--no-deps", "--no-build-isolation", "--python"),
)
START_S = 20.0
STOP_S = 10.0
MESSAGES = [
    {"role": "system", "content": "Be short."},
    {"role": "user", "content": "Hello!"},
]


def run(*command: str | Path, cwd: Path, env: dict[str, str] | None = None) -> str:
    """Run a command to its end and return what it printed."""
    done = subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env=env,
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def bare_environment(**variables: str) -> dict[str, str]:
    """Return an environment that has no Python path, no key and no coverage of this run."""
    kept = {name: os.environ.get(name, "") for name in ("PATH", "SSL_CERT_FILE")}
    return {**kept, "LEDGER": "off", **variables}


@dataclass(frozen=True)
class Built:
    """A copy of the source in its own folder, and the wheels built from it."""

    source: Path
    wheels: Path

    @property
    def gateway(self) -> Path:
        return next(self.wheels.glob("nexus_ai_gateway-*.whl"))


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    source = tmp_path_factory.mktemp("source") / "gateway"
    shutil.copytree(ROOT, source, ignore=NOT_SOURCE)
    wheels = tmp_path_factory.mktemp("wheels")
    third_parties = [source / "tests" / "distributions" / name for name in THIRD_PARTIES]
    # As pip does it, without its own 2 s for each.
    run(sys.executable, "-c", BUILD, wheels, source, *third_parties, cwd=wheels)
    return Built(source, wheels)


@dataclass(frozen=True)
class Installed:
    """A fresh venv, and an empty folder to run from."""

    venv: Path
    empty: Path

    def command(self, name: str) -> Path:
        return self.venv / "bin" / name


@pytest.fixture(scope="session")
def installed(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    folder = tmp_path_factory.mktemp("fresh")
    venv = folder / "venv"
    run(sys.executable, "-m", "venv", "--without-pip", venv, cwd=folder)
    python = venv / "bin" / "python"
    show = "import sysconfig; print(sysconfig.get_path('purelib'))"
    site = Path(run(python, "-I", "-c", show, cwd=folder).strip())
    # A folder named in a .pth file is searched, but its own .pth files are not read: so the
    # libraries are found, and an editable install of the gateway is not.
    outer = dict.fromkeys([sysconfig.get_path("purelib"), sysconfig.get_path("platlib")])
    (site / "libraries.pth").write_text("\n".join(outer) + "\n", encoding="utf-8")
    run(*INSTALL, python, *sorted(built.wheels.glob("*.whl")), cwd=folder)
    empty = folder / "empty"
    empty.mkdir()
    return Installed(venv, empty)


class Gateway:
    """A gateway in its own process."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.url = ""
        self.output = ""

    async def started(self, within_s: float = START_S) -> None:
        """Wait until its port is logged."""
        assert self.process.stderr is not None
        async with asyncio.timeout(within_s):
            while not (match := re.search(r"listens on (http://\S+)", self.output)):
                line = await self.process.stderr.readline()
                assert line, f"it ended: {self.output}"
                self.output += line.decode()
        self.url = match[1]

    async def stop(self) -> int:
        """Stop it; return its exit code."""
        self.process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(STOP_S):
            out, err = await self.process.communicate()
        self.output += (out + err).decode()
        assert self.process.returncode is not None
        return self.process.returncode

    async def chat(self, model: str, *, stream: bool) -> str:
        body = {"model": model, "messages": MESSAGES, "stream": stream}
        async with (
            aiohttp.ClientSession() as session,
            session.post(self.url + "/v1/chat/completions", json=body) as response,
        ):
            text = await response.text()
            assert response.status == 200, text
            return text


@contextlib.asynccontextmanager
async def gateway(installed: Installed, **variables: str) -> AsyncIterator[Gateway]:
    process = await asyncio.create_subprocess_exec(
        *(installed.command("nexus-gateway"), "serve", "--port", "0"),
        cwd=installed.empty,
        env=bare_environment(**variables),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        gateway_process = Gateway(process)
        await gateway_process.started()
        yield gateway_process
    finally:
        if process.returncode is None:
            process.kill()
            await process.communicate()


def streamed(text: str) -> tuple[str, str | None]:
    """Return a streamed response's text and finish_reason."""
    events = [event.removeprefix("data: ") for event in text.split("\n\n") if event]
    assert events[-1] == "[DONE]"
    choices = [choice for event in events[:-1] for choice in json.loads(event)["choices"]]
    reply = "".join(choice["delta"].get("content") or "" for choice in choices)
    return reply, choices[-1]["finish_reason"]
