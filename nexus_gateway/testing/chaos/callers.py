"""The callers of a campaign: each sends a request and reads the answer to its end."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from dataclasses import replace

import aiohttp

from nexus_gateway.testing.chaos.judge import Answered
from nexus_gateway.testing.chaos.plan import Asked

PATH = "/v1/chat/completions"
CONNECT_S = 10.0
_CONTENT = b'"content":"'
_NOTHING = b'"content":""'


def client(concurrency: int) -> aiohttp.ClientSession:
    """Return an HTTP client for so many callers at once."""
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=concurrency),
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S),
        trust_env=False,
    )


async def ask(
    session: aiohttp.ClientSession, url: str, asked: Asked, limit_s: float
) -> Answered | None:
    """Send a request; None where its caller left before the answer was whole.

    Args:
        session: the HTTP client.
        url: of the gateway.
        asked: the request.
        limit_s: after which it hangs.
    """
    leaves = asked.leaves_after_s
    reading = _Reading()
    try:
        async with asyncio.timeout(limit_s if leaves is None else leaves):
            await reading.read(session, url, asked)
    except TimeoutError:
        return None if leaves is not None else replace(reading.answered(), late=True)
    except (aiohttp.ClientError, OSError, ValueError) as error:
        return replace(reading.answered(), trouble=type(error).__name__)
    return reading.answered()


class _Reading:
    """An answer as it comes."""

    def __init__(self) -> None:
        self._status = 0
        self._body = bytearray()
        self._headers = ""
        self._attempts = 0
        self._begun_s = time.monotonic()
        self._first_s = 0.0

    async def read(self, session: aiohttp.ClientSession, url: str, asked: Asked) -> None:
        data = json.dumps(asked.body()).encode()
        head = {"Content-Type": "application/json", **asked.headers}
        async with session.post(url + PATH, data=data, headers=head) as response:
            self._status, self._headers = response.status, str(response.headers)
            with contextlib.suppress(ValueError):
                self._attempts = int(response.headers.get("X-Nexus-Attempts", ""))
            async for piece in response.content.iter_any():
                self._body += piece
                if not self._first_s and (not asked.stream or _says_something(piece)):
                    self._first_s = time.monotonic() - self._begun_s

    def answered(self) -> Answered:
        text = self._body.decode(errors="replace")
        return Answered(self._status, text, self._headers, self._attempts, self._first_s)


def _says_something(piece: bytes) -> bool:
    return piece.count(_CONTENT) > piece.count(_NOTHING)
