"""The Dockerfile, carried out without a Docker engine: its lines run in a sandbox.

Each `RUN` of the build stage runs in a sandbox with the paths that it has in the image, each `COPY`
copies, and the result starts as the image's user, with a read-only root.
"""

from __future__ import annotations

import asyncio
import contextlib
import fnmatch
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import pytest
from answers import text_of
from uv import find_uv_bin

from nexus_gateway.testing.reply import Reply
from nexus_gateway.testing.upstream import FakeUpstream

ROOT = Path(__file__).resolve().parents[2]
KEY = "groq-key-secret"
CHAT = {"messages": [{"role": "user", "content": "Hello!"}], "stream": True}
pytestmark = [
    pytest.mark.timeout(600),
    pytest.mark.skipif(not shutil.which("bwrap"), reason="needs bubblewrap"),
]


@dataclass
class Stage:
    """One `FROM` with its instructions, in order."""

    image: str
    instructions: list[tuple[str, str]] = field(default_factory=list)

    def all(self, instruction: str) -> list[str]:
        return [text for name, text in self.instructions if name == instruction]

    def last(self, instruction: str) -> str:
        return self.all(instruction)[-1]

    def environment(self) -> dict[str, str]:
        words = [word for text in self.all("ENV") for word in shlex.split(text)]
        return dict(word.split("=", 1) for word in words)


def stages() -> list[Stage]:
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    found: list[Stage] = []
    for line in "\n".join(lines).replace("\\\n", " ").splitlines():
        name, _, rest = line.partition(" ")
        if name == "FROM":
            found.append(Stage(rest.split()[0]))
        else:
            found[-1].instructions.append((name, rest.strip()))
    return found


BUILD, FINAL = stages()
# Both check the hashes; the pip of this Python takes 13 s to read the index.
BY_UV = (
    "/opt/nexus/bin/pip install --require-hashes",
    "/uv --no-cache pip install --python /opt/nexus --require-hashes",
)


def sandbox(*binds: str, user: str = "0") -> list[str]:
    """Return the command that runs a command on a root with nothing but Python, and `binds`."""
    python = sys.base_prefix
    return [
        *("bwrap", "--unshare-user", "--unshare-pid", "--die-with-parent", "--as-pid-1"),
        *("--uid", user, "--gid", user, "--clearenv"),
        *("--tmpfs", "/", "--ro-bind", "/usr", "/usr", "--ro-bind", "/etc", "/etc"),
        *("--ro-bind", python, python, "--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp"),
        *(
            word
            for name in ("bin", "lib", "lib64")
            for word in ("--symlink", f"usr/{name}", f"/{name}")
        ),
        *binds,
        *("--remount-ro", "/"),
    ]


def variables(environment: dict[str, str]) -> list[str]:
    path = f"{environment.get('PATH', '').replace('$PATH', '')}{sys.base_prefix}/bin:/usr/bin:/bin"
    whole = {**environment, "PATH": path}
    return [word for name, value in whole.items() for word in ("--setenv", name, value)]


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Carry the build stage out; return the folder that the final stage copies from it."""
    folder = tmp_path_factory.mktemp("image")
    source, built = folder / "src", folder / "nexus"
    source.mkdir()
    built.mkdir()
    assert BUILD.last("WORKDIR") == "/src"
    assert FINAL.all("COPY") == ["--from=build /opt/nexus /opt/nexus"]
    places = (
        *("--bind", str(source), "/src", "--bind", str(built), "/opt/nexus", "--chdir", "/src"),
        *("--ro-bind", find_uv_bin(), "/uv"),
    )
    for name, text in BUILD.instructions:
        if name == "COPY":
            *froms, to = text.split()
            for path in froms:
                copy(path, source / to)
        elif name == "RUN":
            own = {n: v for n, v in os.environ.items() if n.startswith(("PIP_", "UV_"))}
            own["UV_SYSTEM_CERTS"] = "true"
            command = [*sandbox(*places), *variables({**own, **BUILD.environment()})]
            done = subprocess.run(
                [*command, "sh", "-c", text.replace(*BY_UV)],
                capture_output=True,
                text=True,
                timeout=500,
            )
            assert done.returncode == 0, done.stdout + done.stderr
    return built


def copy(path: str, to: Path) -> None:
    """Copy as COPY does: a folder's content, or a file into a folder."""
    origin = ROOT / path
    assert is_sent(path), f"{path} is not in the build context: see .dockerignore"
    if origin.is_dir():
        ignored = shutil.ignore_patterns("__pycache__", ".env")
        shutil.copytree(origin, to, dirs_exist_ok=True, ignore=ignored)
    else:
        to.mkdir(parents=True, exist_ok=True)
        shutil.copy(origin, to)


def is_sent(path: str) -> bool:
    """Return whether .dockerignore leaves a path in the build context; its last match decides."""
    sent = True
    for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").split():
        pattern = line.removeprefix("!").removeprefix("**/")
        names = [path, path.rsplit("/", 1)[-1]] if "**/" in line else [path]
        folders = [str(folder) for folder in Path(path).parents]
        if any(fnmatch.fnmatch(name, pattern) for name in [*names, *folders]):
            sent = line.startswith("!")
    return sent


class Container:
    """A process that runs as the image's would."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.url = ""

    def terminate(self) -> None:
        """Send SIGTERM to the gateway itself: the sandbox does not pass it on."""
        pid = self.process.pid
        (inside,) = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()
        os.kill(int(inside), signal.SIGTERM)

    async def started(self) -> None:
        assert self.process.stderr is not None
        while line := await self.process.stderr.readline():
            if match := re.search(r'"url": ?"http://[^:]+:(\d+)"', line.decode()):
                self.url = f"http://127.0.0.1:{match[1]}"
                return
        raise AssertionError("it ended before it listened")


@contextlib.asynccontextmanager
async def container(image: Path, state: Path, **settings: str) -> AsyncIterator[Container]:
    user, home = FINAL.last("USER"), FINAL.last("WORKDIR")
    assert user == "10001:10001"
    places = ("--ro-bind", str(image), "/opt/nexus", "--bind", str(state), home, "--chdir", home)
    environment = {**FINAL.environment(), "PORT": "0", **settings}
    command = [*json.loads(FINAL.last("ENTRYPOINT")), *json.loads(FINAL.last("CMD"))]
    process = await asyncio.create_subprocess_exec(
        *sandbox(*places, user="10001"),
        *variables(environment),
        *command,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        running = Container(process)
        await asyncio.wait_for(running.started(), 60)
        yield running
    finally:
        if process.returncode is None:
            process.kill()
            await process.communicate()


async def test_the_image_serves_streams_and_drains(image: Path, tmp_path: Path) -> None:
    async with FakeUpstream() as upstream:
        upstream.script(Reply(text="Hello from the image", first_delay_s=0.5))
        settings = {"GROQ_KEY_1": KEY, "GROQ_BASE_URL": upstream.base_url, "GATEWAY_KEYS": "caller"}
        async with container(image, tmp_path, **settings) as running:
            async with aiohttp.ClientSession() as session:
                async with session.get(f"{running.url}/health/ready") as ready:
                    assert ready.status == 200
                url, headers = f"{running.url}/v1/chat/completions", {"x-api-key": "caller"}
                async with session.post(url, json=CHAT, headers=headers) as answer:
                    assert answer.status == 200
                    running.terminate()
                    assert text_of(await answer.text()) == "Hello from the image"
            assert await asyncio.wait_for(running.process.wait(), 30) == 0
    assert (tmp_path / "ledger.sqlite3").exists()


async def test_its_health_check_finds_the_port(image: Path, tmp_path: Path) -> None:
    check = json.loads(FINAL.last("HEALTHCHECK").partition("CMD ")[2])
    async with container(image, tmp_path, GATEWAY_KEYS="caller") as running:
        for port, code in ((running.url.rsplit(":", 1)[1], 0), ("1", 1)):
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                *check[1:],
                env={"PORT": port},
                stderr=asyncio.subprocess.DEVNULL,
            )
            assert await process.wait() == code


def test_nothing_else_is_in_the_build_context() -> None:
    for path in (".env", ".git", "tests/conftest.py", "plugins/.env", "nexus_gateway/__pycache__"):
        assert not is_sent(path), path


def test_the_final_stage_has_the_same_python_as_the_first() -> None:
    assert BUILD.image == FINAL.image
    assert "useradd --system --uid 10001" in FINAL.last("RUN")
