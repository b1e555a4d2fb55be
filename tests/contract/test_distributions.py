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
import tarfile
import zipfile
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from nexus_gateway.testing.reply import Reply
from nexus_gateway.testing.upstream import FakeUpstream

# Building and installing takes long on a busy machine.
pytestmark = pytest.mark.timeout(600)
ROOT = Path(__file__).resolve().parents[2]
THIRD_PARTIES = ("nexus-echo", "nexus-foreign", "nexus-broken")
NOT_SOURCE = shutil.ignore_patterns(
    *(".*_cache", ".env", ".git", ".hypothesis", ".venv", "__pycache__"),
    *("*.egg-info", "build", "dist"),
)
ENDINGS = ("*.py", "*.tmpl", "*.html", "*.css", "*.js", "*.svg")
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
    return {"PATH": os.environ.get("PATH", ""), "LEDGER": "off", **variables}


@dataclass(frozen=True)
class Built:
    """A copy of the source in its own folder, and the wheels built from it."""

    source: Path
    wheels: Path

    @property
    def gateway(self) -> Path:
        return next(self.wheels.glob("nexus_gateway-*.whl"))


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    source = tmp_path_factory.mktemp("source") / "gateway"
    shutil.copytree(ROOT, source, ignore=NOT_SOURCE)
    wheels = tmp_path_factory.mktemp("wheels")
    third_parties = [source / "tests" / "distributions" / name for name in THIRD_PARTIES]
    alone = ("--no-deps", "--no-build-isolation", "--no-index")
    wheel = (sys.executable, "-m", "pip", "wheel", *alone, "-w", wheels)
    run(*wheel, source, *third_parties, cwd=wheels)
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
    pip = (sys.executable, "-m", "pip", "--python", python, "install")
    alone = ("--no-deps", "--no-index", "--ignore-installed")
    run(*pip, *alone, *sorted(built.wheels.glob("*.whl")), cwd=folder)
    empty = folder / "empty"
    empty.mkdir()
    return Installed(venv, empty)


def test_the_wheel_has_both_packages_and_their_types(built: Built) -> None:
    with zipfile.ZipFile(built.gateway) as wheel:
        names = set(wheel.namelist())
    assert {"nexus_gateway/py.typed", "nexus_gateway_plugins/py.typed"} <= names
    for package, folder in (("nexus_gateway",) * 2, ("nexus_gateway_plugins", "plugins")):
        for file in [f for ends in ENDINGS for f in (built.source / folder).rglob(ends)]:
            inside = file.relative_to(built.source / folder).as_posix()
            assert f"{package}/{inside}" in names
    tops = {name.split("/")[0] for name in names if ".dist-info/" not in name}
    assert tops == {"nexus_gateway", "nexus_gateway_plugins"}


def test_the_sdist_has_all_files_for_a_build(built: Built, tmp_path: Path) -> None:
    build = "import sys; from setuptools import build_meta; build_meta.build_sdist(sys.argv[1])"
    run(sys.executable, "-c", build, tmp_path, cwd=built.source)
    with tarfile.open(next(tmp_path.glob("nexus_gateway-*.tar.gz"))) as sdist:
        names = {name.partition("/")[2] for name in sdist.getnames()}
    needed = {"LICENSE", "Makefile", "Procfile", ".env.example", "pyproject.toml", "setup.cfg"}
    needed |= {"nexus_gateway/py.typed", "plugins/py.typed", "plugins/groq.py"}
    needed |= {"nexus_gateway/cli/scaffold/common/setup.cfg.tmpl"}
    needed |= {"nexus_gateway/web/static/index.html", "docs/control-center.png"}
    needed |= {"tests/conftest.py", "tests/distributions/nexus-echo/setup.cfg"}
    assert needed - names == set()


@pytest.mark.parametrize("module", ["nexus_gateway", "nexus_gateway_plugins", "nexus_echo"])
def test_the_installed_code_runs(installed: Installed, module: str) -> None:
    show = f"import {module}; print({module}.__file__)"
    place = run(
        installed.command("python"), "-c", show, cwd=installed.empty, env=bare_environment()
    ).strip()
    assert Path(place).resolve().is_relative_to(installed.venv.resolve())


def test_every_provider_is_listed_and_the_broken_one_reported(installed: Installed) -> None:
    out = run(
        installed.command("nexus-gateway"), "providers", cwd=installed.empty, env=bare_environment()
    )
    listed, _, left_out = out.partition("left out:")
    firsts = {line.split()[0] for line in listed.splitlines() if line.strip()}
    assert {"groq", "gemini", "openrouter", "cerebras", "demo", "echo", "foreign"} <= firsts
    assert "broken" not in firsts
    assert "broken (nexus-broken 0.1.0" in left_out
    assert "nexus_broken needs a library that nobody has" in left_out
    assert "nexus-echo 0.1.0" in listed


FOREIGN_EVENTS: list[tuple[str, dict[str, Any]]] = [
    ("message_start", {"usage": {"input_tokens": 5}}),
    ("ping", {}),
    ("content_block_delta", {"delta": {"text": "Bon"}}),
    ("content_block_delta", {"delta": {"text": "jour"}}),
    ("message_delta", {"stop_reason": "max_tokens", "usage": {"output_tokens": 2}}),
    ("message_stop", {}),
]


class ForeignBackend:
    """A backend with the format that nexus-foreign translates."""

    def __init__(self) -> None:
        self.received: list[tuple[dict[str, str], dict[str, Any]]] = []
        self.base_url = ""

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.received.append((dict(request.headers), await request.json()))
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for name, data in FOREIGN_EVENTS:
            await response.write(f"event: {name}\ndata: {json.dumps(data)}\n\n".encode())
        return response


@contextlib.asynccontextmanager
async def foreign_backend() -> AsyncIterator[ForeignBackend]:
    backend = ForeignBackend()
    app = web.Application()
    app.router.add_post("/messages", backend.answer)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        backend.base_url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        yield backend
    finally:
        await runner.cleanup()


class Gateway:
    """A gateway in its own process."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.url = ""
        self.output = ""

    async def started(self) -> None:
        """Wait until its port is logged."""
        assert self.process.stderr is not None
        async with asyncio.timeout(START_S):
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


def unstreamed(text: str) -> tuple[str, str | None]:
    """Return the text and finish_reason of a response without a stream."""
    choice = json.loads(text)["choices"][0]
    return choice["message"]["content"], choice["finish_reason"]


async def test_providers_of_other_distributions_answer(installed: Installed) -> None:
    async with FakeUpstream() as echo, foreign_backend() as foreign:
        echo.default = Reply(text="An echo from afar")
        variables = {
            "ECHO_KEY_1": "echo-key-secret",
            "ECHO_BASE_URL": echo.base_url,
            "FOREIGN_KEY_1": "foreign-key-secret",
            "FOREIGN_BASE_URL": foreign.base_url,
        }
        async with gateway(installed, **variables) as served:
            for stream, read in ((True, streamed), (False, unstreamed)):
                reply = read(await served.chat("echo", stream=stream))
                assert reply == ("An echo from afar", "stop")
                assert read(await served.chat("foreign", stream=stream)) == ("Bonjour", "length")
            assert await served.stop() == 0
        assert [r.key for r in echo.requests] == ["echo-key-secret"] * 2
        assert [r.body["model"] for r in echo.requests] == ["echo-1"] * 2
    headers, body = foreign.received[0]
    assert {k.lower(): v for k, v in headers.items()}["x-api-key"] == "foreign-key-secret"
    assert "authorization" not in {k.lower() for k in headers}
    assert (body["model"], body["system"]) == ("foreign-1", "Be short.")
    assert body["messages"] == MESSAGES[1:]
    assert "key-secret" not in served.output
