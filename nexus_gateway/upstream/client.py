"""The HTTP client: a POST is sent and the head of its answer awaited.

Two ways lead there. The *direct* one (`exchange`) takes the usual request, a body in one piece
and headers that need no thought; the *plain* one, aiohttp's session, takes all, and is there for
whatever the direct one will not touch.

An upstream may close a connection that waits in the very moment in which it is used again. Where
not a byte of an answer has come on it, the request is sent once more, on another connection.
"""

from __future__ import annotations

import errno
import io
import logging
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import lru_cache
from types import SimpleNamespace

import aiohttp
from yarl import URL

from nexus_gateway import __version__
from nexus_gateway.provider import HttpRequest
from nexus_gateway.upstream.direct import (
    PRIVATE_API_ERRORS,
    READ_BUFFER,
    BorrowedConnection,
    Connections,
    DirectResponse,
)
from nexus_gateway.upstream.http1 import request_head
from nexus_gateway.upstream.response import AiohttpResponse, HttpResponse

logger = logging.getLogger("nexus_gateway")

CONNECT_TIMEOUT_S = 3.0
KEEP_CONNECTION_S = 30.0
LARGE_BODY = 512 * 1024
NO_HEADERS: Mapping[str, str] = {}
_TIMEOUT = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT_S)
_ALWAYS = {"User-Agent": f"nexus-gateway/{__version__}", "Accept-Encoding": "identity"}
# Who sets one of these has something unusual in mind.
_UNUSUAL = frozenset({"connection", "content-length", "expect", "host", "transfer-encoding", "te"})


class Client:
    """Sends requests.

    Args:
        session: aiohttp's client.
        direct: whether the direct way may be taken at all.
    """

    def __init__(self, session: aiohttp.ClientSession, *, direct: bool = True) -> None:
        self._session = session
        self._connections = Connections(session, _TIMEOUT) if direct else None

    async def post(self, http: HttpRequest, more: Mapping[str, str] = NO_HEADERS) -> HttpResponse:
        """Send a request; returns when the head of its answer is there.

        Args:
            http: the request.
            more: headers beside its own, which are new with each attempt: names and values that
                can be sent as they are.

        Raises:
            aiohttp.ClientError, OSError, ValueError, TypeError: there is none.
        """
        if self._connections is not None and isinstance(http.body, bytes):
            written = _encode_head(http.url, tuple(http.headers.items()))
            if written is not None and len(http.body) <= LARGE_BODY:
                # Not part of the head, which is written once for all that have the same.
                last = "".join([f"{name}: {value}\r\n" for name, value in more.items()])
                parts = (written[1], len(http.body), last.encode("ascii"), http.body)
                request = b"%b%d\r\n%b\r\n%b" % parts
                answer = await self._direct(self._connections, written[0], request)
                if answer is not None:
                    return answer
        return await self._via_aiohttp(http, more)

    async def _direct(
        self, connections: Connections, origin: str, request: bytes
    ) -> HttpResponse | None:
        borrowed = await self._borrow(connections, origin)
        if borrowed is None:
            return None
        try:
            return await _send_direct(borrowed, request)
        except _Stale:
            return await _send_direct(await connections.borrow(origin, fresh=True), request)

    async def _borrow(self, connections: Connections, origin: str) -> BorrowedConnection | None:
        try:
            return await connections.borrow(origin)
        except PRIVATE_API_ERRORS:
            logger.warning(
                "aiohttp %s is not as expected: taking the plain way", aiohttp.__version__
            )
            self._connections = None
            return None

    async def _via_aiohttp(self, http: HttpRequest, more: Mapping[str, str]) -> AiohttpResponse:
        if more:
            http = replace(http, headers={**http.headers, **more})
        reused = _Reused()
        try:
            response = await self._post(http, reused)
        except aiohttp.ServerDisconnectedError as error:
            # Its message is the beginning of an answer where there was one.
            silent = reused.yes and isinstance(error.message, str)
            if not (silent and isinstance(http.body, bytes)):
                raise
            response = await self._post(http, reused)
        return AiohttpResponse(
            response.status, response.headers, response.content, response.release, response.close
        )

    async def _post(self, http: HttpRequest, reused: _Reused) -> aiohttp.ClientResponse:
        body = http.body
        # In one piece a large body would be copied, and block the loop, all at once.
        data = io.BytesIO(body) if isinstance(body, bytes) and len(body) > LARGE_BODY else body
        return await self._session.post(
            http.url,
            data=data,
            headers=http.headers,
            allow_redirects=False,
            trace_request_ctx=reused,
        )


class _Stale(Exception):
    """A connection that had waited was closed before it answered: nobody's fault."""


class _Reused:
    """Notes whether a request went out on a connection that had waited."""

    yes = False


async def _note_reuse(_: object, context: SimpleNamespace, __: object) -> None:
    context.trace_request_ctx.yes = True


async def _send_direct(borrowed: BorrowedConnection, request: bytes) -> HttpResponse:
    exchange = DirectResponse(borrowed)
    try:
        await exchange.ask(request)
    except BaseException as error:
        if exchange.handed_over:
            borrowed.give_back(reusable=False)
        lost = isinstance(error, aiohttp.ServerDisconnectedError | aiohttp.ClientOSError)
        stale = lost and borrowed.used and exchange.unanswered
        exchange.close()
        if stale:
            raise _Stale from error
        raise
    return await borrowed.answer() if exchange.handed_over else exchange


@lru_cache(maxsize=1024)
def _encode_head(url: str, headers: tuple[tuple[str, str], ...]) -> tuple[str, bytes] | None:
    """Return a request's origin and its head; None where it has to go the plain way."""
    try:
        address = URL(url)
        if address.scheme not in ("http", "https") or address.user or not address.host:
            return None
        names = {name.lower() for name, _ in headers}
        if len(names) < len(headers) or names & _UNUSUAL:
            return None
        own = [(name, value) for name, value in _ALWAYS.items() if name.lower() not in names]
        lines = (("Host", address.host_port_subcomponent or ""), *own, *headers)
        head = request_head(address.raw_path_qs, lines)
    except (ValueError, TypeError, AttributeError):
        return None  # whatever it is, aiohttp finds the words
    return None if head is None else (str(address.origin()), head)


@asynccontextmanager
async def open_client(*, direct: bool = True) -> AsyncIterator[Client]:
    """Open the HTTP client that all attempts share.

    No limit on connections (a stream holds one for minutes), no total timeout (streams are
    bounded by silence, not by length), no cookies, no proxies from the environment.

    Args:
        direct: whether the direct way may be taken.
    """
    connector = aiohttp.TCPConnector(
        limit=0, ttl_dns_cache=300, keepalive_timeout=KEEP_CONNECTION_S
    )
    traces = aiohttp.TraceConfig()
    traces.on_connection_reuseconn.append(_note_reuse)
    async with aiohttp.ClientSession(
        connector=connector,
        timeout=_TIMEOUT,
        cookie_jar=aiohttp.DummyCookieJar(),
        headers=_ALWAYS,
        read_bufsize=READ_BUFFER,
        trust_env=False,
        trace_configs=[traces],
    ) as session:
        yield Client(session, direct=direct)


_EXHAUSTED = frozenset({errno.EMFILE, errno.ENFILE})


def exhausted(error: BaseException) -> bool:
    """Tell whether something failed because there are none left."""
    return isinstance(error, OSError) and error.errno in _EXHAUSTED
