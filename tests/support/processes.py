"""The gateway as a separate process."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import re
import signal
import socket
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path

from fakes import KEYS
from waiting import until_async

from nexus_gateway.server.sockets import listen
from nexus_gateway.testing.upstream import FakeUpstream


@contextlib.contextmanager
def listening_sockets(host: str, slots: int) -> Iterator[list[list[socket.socket]]]:
    """Listen on a free port once for each slot; close all sockets at the end."""
    with contextlib.ExitStack() as closing:
        sockets = listen(host, 0, slots)
        for one in itertools.chain.from_iterable(sockets):
            closing.enter_context(one)
        yield sockets


class Process:
    def __init__(self, process: asyncio.subprocess.Process, url: str, log: list[str]) -> None:
        self.process = process
        self.url = url
        self.log = log

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    async def exit_code(self, within_s: float = 30) -> int:
        return await asyncio.wait_for(self.process.wait(), within_s)


@contextlib.asynccontextmanager
async def process(
    folder: Path,
    *flags: str,
    stdin: int | None = None,
    start: Sequence[str] = ("-m", "nexus_gateway"),
    **env: str,
) -> AsyncIterator[Process]:
    """Run `serve` on a free port; its output is in `log`."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("GROQ", "PORT", "HOST"))}
    command = [sys.executable, *start, "serve", "--port", "0", *flags]
    # Not in the repository's folder: its .env would be read.
    started = await asyncio.create_subprocess_exec(
        *command,
        cwd=folder,
        env={**clean, **env},
        stdin=stdin,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    assert started.stdout is not None
    log: list[str] = []
    url = ""
    while not url:
        line = (await asyncio.wait_for(started.stdout.readline(), 30)).decode()
        assert line, "".join(log)
        log.append(line)
        match = re.search(r"http://[\d.:]+", line)
        url = match[0] if match else ""

    async def read() -> None:
        assert started.stdout is not None
        async for line in started.stdout:
            log.append(line.decode())

    reading = asyncio.create_task(read())
    try:
        yield Process(started, url, log)
    finally:
        if started.returncode is None:
            started.kill()
        await started.wait()
        await reading


def write_env(file: Path, upstream: FakeUpstream, key: str = KEYS[0], **more: str) -> None:
    settings = {"GROQ_KEY_1": key, "GROQ_BASE_URL": upstream.base_url, **more}
    file.write_text("".join(f"{name}={value}\n" for name, value in settings.items()))


async def worker_pids(gateway: Process) -> list[int]:
    async def both_serve() -> bool:
        return len(re.findall(r"is serving", "".join(gateway.log))) == 2

    await until_async(both_serve)
    return [int(pid) for pid in re.findall(r"\(pid (\d+)\) is serving", "".join(gateway.log))]
