"""Programs that run in a clean environment, on loopback, for a limited time."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import sys
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

NOWHERE = "http://127.0.0.1:9"
LOOPBACK = "127.0.0.1,localhost"
START_S = 20.0
_LISTENS = re.compile(r"listens on http://127\.0\.0\.1:(\d+)\s")
PROXIES = {
    **dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"), NOWHERE),
    **dict.fromkeys(("http_proxy", "https_proxy", "all_proxy"), NOWHERE),
    **{"NO_PROXY": LOOPBACK, "no_proxy": LOOPBACK},
}


@dataclass(frozen=True)
class Ended:
    """How a program ended; `code` is None if its time was over."""

    code: int | None
    output: str
    seconds: float


def clean(home: Path, path: str) -> dict[str, str]:
    """Return the environment of a program: nothing of the developer's, and no way out."""
    return {"HOME": str(home), "PATH": path, "LANG": "C.UTF-8", "TERM": "dumb", **PROXIES}


async def run(argv: Sequence[str], env: Mapping[str, str], folder: Path, limit_s: float) -> Ended:
    """Run a program to its end, and end what it leaves behind."""
    begun_s = time.monotonic()
    process = await asyncio.create_subprocess_exec(
        *argv,
        env=dict(env),
        cwd=folder,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        start_new_session=True,
    )
    assert process.stdout is not None
    output = bytearray()
    code = None
    try:
        async with asyncio.timeout(limit_s):
            while piece := await process.stdout.read(65536):
                output += piece
            code = await process.wait()
    except TimeoutError:
        pass
    finally:
        # Its session, which it leads: the process id is the group's.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()
    return Ended(code, output.decode(errors="replace"), time.monotonic() - begun_s)


@contextlib.asynccontextmanager
async def gateway(env: Mapping[str, str], folder: Path) -> AsyncIterator[int]:
    """Run a gateway until the block ends; return its port. Its log is `gateway.log`."""
    # Any port but one chosen here: another program might take that before the gateway does.
    settings = {"PORT": "0", "LEDGER": "off", "LOG_LEVEL": "debug", **env}
    file = folder / "gateway.log"
    with file.open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "nexus_gateway", "serve"),
            env={**clean(folder, os.defpath), **settings},
            cwd=folder,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        try:
            yield await _port(file, process)
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()


async def _port(log: Path, process: asyncio.subprocess.Process) -> int:
    end_s = time.monotonic() + START_S
    while time.monotonic() < end_s and process.returncode is None:
        if found := _LISTENS.search(_text(log)):
            return int(found[1])
        await asyncio.sleep(0.02)
    raise RuntimeError(f"the gateway does not start: {_text(log)}")


def _text(log: Path) -> str:
    return log.read_text(encoding="utf-8")
