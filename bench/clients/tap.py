"""A proxy between a client and the gateway that keeps what both have said."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from typing import Any, Self

import aiohttp
from aiohttp import web

LARGEST_BODY = 64 * 1024 * 1024
HOP_BY_HOP = {"connection", "host", "content-length", "transfer-encoding", "accept-encoding"}
ANSWER_ONLY = {"connection", "content-length", "transfer-encoding"}


@dataclass
class Exchange:
    """One request of a client and its answer."""

    method: str
    target: str
    headers: dict[str, str]
    body: bytes
    at_s: float
    status: int = 0  # 0 as long as the gateway has not answered
    answer_headers: dict[str, str] = field(default_factory=dict)
    answer: bytes = b""

    def shown(self) -> dict[str, Any]:
        """Return it for a JSON file; the caller's key in this lab is no secret."""
        return {
            **{"at_s": round(self.at_s, 2), "request": f"{self.method} {self.target}"},
            **{"headers": self.headers, "body": _read(self.body), "status": self.status},
            **{"answer_headers": self.answer_headers, "answer": _read(self.answer)},
        }


def _read(body: bytes) -> Any:
    try:
        return json.loads(body)
    except ValueError:
        return body.decode(errors="replace")


class Tap:
    """The proxy; `exchanges` is what passed through it."""

    def __init__(self, port: int) -> None:
        self.exchanges: list[Exchange] = []
        self.url = ""
        self._gateway = f"http://127.0.0.1:{port}"
        self._begun_s = time.monotonic()

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(auto_decompress=False)
        app = web.Application(client_max_size=LARGEST_BODY)
        app.router.add_route("*", "/{path:.*}", self._pass)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self._runner.cleanup()
        await self._session.close()

    async def _pass(self, request: web.Request) -> web.StreamResponse:
        exchange = Exchange(
            request.method,
            request.path_qs,
            dict(request.headers),
            await request.read(),
            time.monotonic() - self._begun_s,
        )
        self.exchanges.append(exchange)
        headers = {n: v for n, v in request.headers.items() if n.lower() not in HOP_BY_HOP}
        url = self._gateway + request.path_qs
        async with self._session.request(
            request.method, url, headers=headers, data=exchange.body, allow_redirects=False
        ) as answer:
            exchange.status = answer.status
            exchange.answer_headers = dict(answer.headers)
            response = web.StreamResponse(status=answer.status)
            for name, value in answer.headers.items():
                if name.lower() not in ANSWER_ONLY:
                    response.headers.add(name, value)
            await response.prepare(request)
            async for piece in answer.content.iter_any():
                exchange.answer += piece
                await response.write(piece)
            return response
