"""The HTTP client: sends a POST and waits for the head of its response.

There are two paths. The *direct* one (`upstream.direct`) takes the usual request: a body in one
piece and usual headers. aiohttp's session takes all others, and those for an http upstream behind a
proxy, which have another form.

Each request is marked with the gateway's pseudonym in `Via`, so that one whose address leads back
to the gateway is recognised (RFC 9110, section 7.6.3).

An upstream may close an idle connection at the moment it is used again. If not a byte of a
response has arrived on it, the request is sent once more, on another connection; the idle ones,
which are as old, are closed.
"""

from __future__ import annotations

import asyncio
import errno
import io
import logging
import secrets
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from copy import copy
from dataclasses import replace
from functools import lru_cache, partial
from typing import Any

import aiohttp
from yarl import URL

from nexus_gateway import __version__
from nexus_gateway.provider import HttpRequest
from nexus_gateway.settings import Settings
from nexus_gateway.upstream.connector import Connector, Idle, needs_new, reused
from nexus_gateway.upstream.direct import (
    PRIVATE_API_ERRORS,
    READ_BUFFER,
    BorrowedConnection,
    DirectResponse,
    request_to,
)
from nexus_gateway.upstream.dns import Resolver
from nexus_gateway.upstream.http1 import request_head
from nexus_gateway.upstream.proxy import proxy_of
from nexus_gateway.upstream.response import AiohttpResponse, Fail, HttpResponse, Receive

logger = logging.getLogger("nexus_gateway")

CONNECT_TIMEOUT_S = 3.0
KEEPALIVE_S = 30.0
LARGE_BODY = 512 * 1024
NO_HEADERS: Mapping[str, str] = {}
# An idle connection that was closed or reset.
_LOST = (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError)
_TIMEOUT = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT_S)
_DEFAULT_HEADERS = {"User-Agent": f"nexus-gateway/{__version__}", "Accept-Encoding": "identity"}
# A request that sets one of these is left to aiohttp.
_UNUSUAL = frozenset({"connection", "content-length", "expect", "host", "transfer-encoding", "te"})


class SentRequest:
    """A request that was sent at once, for whoever waits for its response.

    Attributes:
        sent_s: when, in the loop's time.
        until_s: when its first content was due, in the loop's time, if it is overdue.
    """

    __slots__ = ("_borrowed", "_is_taken", "response", "sent_s", "until_s")

    def __init__(self, borrowed: BorrowedConnection, response: DirectResponse) -> None:
        self.response = response
        self.sent_s = asyncio.get_running_loop().time()
        self.until_s: float | None = None
        self._borrowed = borrowed
        self._is_taken = False

    def take(self) -> tuple[BorrowedConnection, DirectResponse]:
        self._is_taken = True
        return self._borrowed, self.response

    def abandon(self) -> None:
        """Cancel it unless it was taken."""
        if self._is_taken:
            return
        if self.response.handed_over:
            self._borrowed.give_back(reusable=False)
        self.response.close()


class Client:
    """Sends requests.

    Args:
        session: its headers include `via`.
        via: the gateway's entry in `Via`.
        settings: for the direct path and for proxies.
    """

    def __init__(self, session: aiohttp.ClientSession, via: str, settings: Settings) -> None:
        self.via = via
        self._via_line = f"Via: {via}\r\n"
        assert isinstance(session.connector, Connector)
        self._session, self._pool = session, session.connector
        self._proxy_of = lru_cache(maxsize=1024)(partial(proxy_of, settings))
        self._has_proxies = bool(settings.proxies)
        self._is_direct = settings.direct_path
        self._sent: SentRequest | None = None
        self._request_to = lru_cache(maxsize=1024)(partial(request_to, self._proxy_of))
        self._key_of = lru_cache(maxsize=1024)(lambda o: self._request_to(o).connection_key)

    @property
    def is_direct(self) -> bool:
        """Whether the direct path is used."""
        return self._is_direct

    def limit_connections(self, most: float) -> None:
        """Close idle connections rather than have more than so many."""
        self._pool.most = most

    async def post(
        self, http: HttpRequest, extra_headers: Mapping[str, str] = NO_HEADERS
    ) -> HttpResponse:
        """Send a request and wait for the head of its response.

        ClientError, OSError, ValueError or TypeError if there is none. `extra_headers` are those of
        this attempt alone, and valid as they are; a `Via` among them includes the gateway's entry.
        """
        sent, self._sent = self._sent, None
        encoded = self._encode(http, extra_headers)
        while encoded is not None:
            if sent is None:
                origin, request = encoded
                try:
                    connection: Any = await self._pool.connect(
                        self._request_to(origin), [], _TIMEOUT
                    )
                    borrowed = _borrow(connection, reused.get())
                except PRIVATE_API_ERRORS:
                    self._give_up_direct()
                    break
                response = DirectResponse(borrowed)
                response.send(request)
            else:
                borrowed, response, sent = *sent.take(), None
            try:
                await response.wait_for_head()
            except BaseException as error:
                if response.handed_over:
                    borrowed.give_back(reusable=False)
                lost = isinstance(error, _LOST) and response.is_unanswered
                response.close()
                if not lost or borrowed.idle is None:
                    raise
                self._pool.forget(borrowed.idle.key)
            else:
                return await borrowed.response() if response.handed_over else response
        return await self._via_aiohttp(http, extra_headers)

    def post_at_once(
        self,
        http: HttpRequest,
        extra_headers: Mapping[str, str],
        receive: Receive,
        fail: Fail,
    ) -> SentRequest | None:
        """Send a request if that needs no wait: on the direct path, on an idle connection.

        `receive` and `fail` as of `HttpResponse.push`, from the head on; `fail` also gets
        `UnsupportedResponse`.
        """
        encoded = self._encode(http, extra_headers)
        if encoded is None:
            return None
        origin, request = encoded
        try:
            taken = self._pool.take_idle(self._key_of(origin))
            if taken is None:
                return None
            borrowed = _borrow(*taken)
        except PRIVATE_API_ERRORS:
            self._give_up_direct()
            return None
        response = DirectResponse(borrowed)
        response.push(receive, fail)
        response.send(request)
        return SentRequest(borrowed, response)

    def continuing(self, sent: SentRequest) -> Client:
        """Return a client whose first request was sent already."""
        client = copy(self)
        client._sent = sent
        return client

    def _encode(
        self, http: HttpRequest, extra_headers: Mapping[str, str]
    ) -> tuple[str, bytes] | None:
        """Return a request's origin and its bytes; None if it is not for the direct path."""
        body = http.body
        if not self._is_direct or not isinstance(body, bytes) or len(body) > LARGE_BODY:
            return None
        encoded = _encode_head(http.url, tuple(http.headers.items()))
        if encoded is None or (self._has_proxies and self._is_forwarded(encoded[0])):
            return None
        origin, head = encoded
        # Not part of the head, which is cached for all requests with the same headers.
        last = "" if "Via" in extra_headers else self._via_line
        for name, value in extra_headers.items():
            last += f"{name}: {value}\r\n"
        return origin, b"%b%d\r\n%b\r\n%b" % (head, len(body), last.encode("ascii"), body)

    def _give_up_direct(self) -> None:
        logger.warning(
            "aiohttp %s does not support the direct path: using its session", aiohttp.__version__
        )
        self._is_direct = False

    def _is_forwarded(self, origin: str) -> bool:
        """Whether a proxy gets the request itself, and not a tunnel."""
        return origin.startswith("http:") and self._proxy_of(URL(origin)) is not None

    async def _via_aiohttp(
        self, http: HttpRequest, extra_headers: Mapping[str, str]
    ) -> AiohttpResponse:
        if extra_headers:
            http = replace(http, headers={**http.headers, **extra_headers})
        while True:
            try:
                response = await self._post(http)
            except _LOST:
                idle = reused.get()
                if idle is None or idle.answered:
                    raise
                self._pool.forget(idle.key)
            else:
                return AiohttpResponse(
                    response.status,
                    response.headers,
                    response.content,
                    response.release,
                    response.close,
                    reused.get(),
                )

    async def _post(self, http: HttpRequest) -> aiohttp.ClientResponse:
        body = http.body
        # In one piece, a large body would be copied at once, which blocks the loop.
        data = io.BytesIO(body) if isinstance(body, bytes) and len(body) > LARGE_BODY else body
        new = needs_new.set(not isinstance(data, bytes))
        try:
            return await self._session.post(
                http.url,
                data=data,
                headers=http.headers,
                allow_redirects=False,
                proxy=self._proxy_of(URL(http.url)) if self._has_proxies else None,
            )
        finally:
            needs_new.reset(new)


def _borrow(connection: Any, idle: Idle | None) -> BorrowedConnection:
    handler = connection.protocol
    return BorrowedConnection(connection, handler, handler.transport, idle)


@lru_cache(maxsize=1024)
def _encode_head(url: str, headers: tuple[tuple[str, str], ...]) -> tuple[str, bytes] | None:
    """Return a request's origin and its head; None if it is not for the direct path."""
    try:
        address = URL(url)
        if address.scheme not in ("http", "https") or address.user or not address.host:
            return None
        names = {name.lower() for name, _ in headers}
        if len(names) < len(headers) or names & _UNUSUAL:
            return None
        defaults = [(k, v) for k, v in _DEFAULT_HEADERS.items() if k.lower() not in names]
        fields = (("Host", address.host_port_subcomponent or ""), *defaults, *headers)
        head = request_head(address.raw_path_qs, fields)
    except (ValueError, TypeError, AttributeError):
        return None  # aiohttp reports what is wrong
    return None if head is None else (str(address.origin()), head)


@asynccontextmanager
async def open_client(settings: Settings, pseudonym: str = "") -> AsyncIterator[Client]:
    """Open the HTTP client that all attempts share.

    The workers of one gateway share its `pseudonym`; "" for one of its own.

    No limit on connections (a stream holds one for minutes), no total timeout (streams are
    bounded by silence, not by length), no cookies, no proxy or password of the environment's.
    """
    connector = Connector(
        limit=0, keepalive_timeout=KEEPALIVE_S, resolver=Resolver(), use_dns_cache=False
    )
    via = f"1.1 nexus-{pseudonym or secrets.token_hex(8)}"
    async with aiohttp.ClientSession(
        connector=connector,
        timeout=_TIMEOUT,
        cookie_jar=aiohttp.DummyCookieJar(),
        headers={**_DEFAULT_HEADERS, "Via": via},
        read_bufsize=READ_BUFFER,
        trust_env=False,
    ) as session:
        yield Client(session, via, settings)


def exhausted(error: BaseException) -> bool:
    """Return whether an error means that no file descriptor is left."""
    return isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE)
