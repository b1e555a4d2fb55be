"""What is built, and a gateway that is installed from it: see `distributions`."""

from __future__ import annotations

import contextlib
import json
import sys
import tarfile
import zipfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from distributions import MESSAGES, Built, Installed, bare_environment, gateway, run, streamed

from nexus_gateway.testing.reply import Reply
from nexus_gateway.testing.upstream import FakeUpstream

# Building and installing takes long on a busy machine.
pytestmark = pytest.mark.timeout(600)
ENDINGS = ("*.py", "*.tmpl", "*.html", "*.css", "*.js", "*.svg")


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
    with tarfile.open(next(tmp_path.glob("nexus_ai_gateway-*.tar.gz"))) as sdist:
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
