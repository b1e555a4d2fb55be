"""systemd's watchdog: it restarts a process whose event loop hangs, if WatchdogSec is set."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Coroutine, Mapping
from dataclasses import dataclass
from typing import Any, Self

BEATS_PER_LIMIT = 3


@dataclass(frozen=True, slots=True)
class Watchdog:
    address: str  # a datagram socket; "@" begins an abstract one
    limit_s: float

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> Self | None:
        """Return the watchdog of this process, if there is one (see sd_watchdog_enabled(3))."""
        address, limit_us = environ.get("NOTIFY_SOCKET", ""), environ.get("WATCHDOG_USEC", "")
        is_ours = environ.get("WATCHDOG_PID", "") in ("", str(os.getpid()))
        if not (address and limit_us.isdecimal() and is_ours):
            return None
        return cls(address, int(limit_us) / 1e6)

    async def watch(self, main: Coroutine[Any, Any, int]) -> int:
        """Run a coroutine, and meanwhile report that the event loop runs."""
        beating = asyncio.create_task(self._beat())
        try:
            return await main
        finally:
            beating.cancel()

    async def _beat(self) -> None:
        address = f"\0{self.address[1:]}" if self.address.startswith("@") else self.address
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
            notify.setblocking(False)
            while True:
                with contextlib.suppress(OSError):
                    notify.sendto(b"WATCHDOG=1", address)
                await asyncio.sleep(self.limit_s / BEATS_PER_LIMIT)
