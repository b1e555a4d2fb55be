"""The gateway as a process of its own: started, asked how it is, ended."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import sys
import tempfile
from collections import deque
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

from nexus_gateway.settings import VARIABLES

START_S = 30.0
STOP_S = 20.0
KILL_S = 5.0
LINES = 2000
# What a process needs to run at all; nothing by which it could find a key.
_KEPT = ("PATH", "PYTHONPATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "VIRTUAL_ENV", "SYSTEMROOT")
_OURS = frozenset({"HOST", "PORT", "GATEWAY_KEYS", "ADMIN_TOKEN", "VIEWER_TOKEN"})
# What is tried is no use of the owner's: his ledger and his collector hear nothing of it.
_UNSEEN = {"LEDGER": "off"}
_URL = re.compile(r"listens on (http://[\w.:\[\]]+)")


def isolated(environ: Mapping[str, str]) -> dict[str, str]:
    """Return of an environment what a process needs, and the settings that are no secret."""
    names = {variable.name for variable in VARIABLES} - _OURS
    settings = {name for name in names if not name.startswith("OTEL_")}
    return {k: v for k, v in environ.items() if k in _KEPT or k in settings} | _UNSEEN


class GatewayProcess:
    """A gateway that runs.

    Attributes:
        url: where it listens.
        log: the last lines that it wrote.
    """

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.url = ""
        self.log: deque[str] = deque(maxlen=LINES)
        self._process = process
        self._ready = asyncio.Event()
        self._reading = asyncio.create_task(self._read())

    async def _read(self) -> None:
        assert self._process.stderr is not None
        with contextlib.suppress(ValueError):  # a line of no end
            async for line in self._process.stderr:
                self.log.append(line.decode(errors="replace"))
                if not self._ready.is_set() and (found := _URL.search(self.log[-1])):
                    self.url = found[1]
                    self._ready.set()
        self._ready.set()

    async def started(self) -> None:
        """Wait until it listens.

        Raises:
            RuntimeError: it does not.
        """
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._ready.wait(), START_S)
        if not self.url:
            raise RuntimeError(f"the gateway did not start: {''.join(self.log)[-2000:]}")

    async def stop(self) -> int | None:
        """Ask it to end; return its exit code, None where it did not end in time."""
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGTERM)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._process.wait(), STOP_S)
        return self._process.returncode

    async def end(self) -> None:
        """End it, whatever it takes."""
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.terminate()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._process.wait(), KILL_S)
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
            await self._process.wait()
        await self._reading


@asynccontextmanager
async def gateway(env: Mapping[str, str]) -> AsyncIterator[GatewayProcess]:
    """Run a gateway on a free port of loopback until the block ends.

    Args:
        env: its whole environment. No .env is read: it runs in an empty folder.

    Raises:
        RuntimeError: it does not start.
    """
    with tempfile.TemporaryDirectory() as folder:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "nexus_gateway", "serve", "--host", "127.0.0.1", "--port", "0"),
            env={**env, "PYTHONUNBUFFERED": "1"},
            cwd=folder,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            # Ctrl-C is for us to see: we end it.
            start_new_session=os.name == "posix",
        )
        running = GatewayProcess(process)
        try:
            await running.started()
            yield running
        finally:
            await running.end()
