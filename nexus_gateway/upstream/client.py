"""The HTTP client: sends a POST and waits for the head of its response.

There are two paths. The *direct* one (`upstream.direct`) takes the usual request: a body in one
piece and usual headers. aiohttp's session takes all others, and those for an http upstream behind a
proxy, which have another form.

Each request is marked with the gateway's pseudonym in `Via`, so that one whose address leads back
to the gateway is recognised (RFC 9110, section 7.6.3).

An upstream may close an idle connection at the moment it is used again. If not a byte of a
response has arrived on it, the request is sent once more, on another connection.
"""

from __future__ import annotations

import errno
import io
import logging
import secrets
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import lru_cache, partial
from types import SimpleNamespace

import aiohttp
from yarl import URL

from nexus_gateway import __version__
from nexus_gateway.provider import HttpRequest
from nexus_gateway.settings import Settings
from nexus_gateway.upstream.direct import (
    PRIVATE_API_ERRORS,
    READ_BUFFER,
    DirectConnector,
    DirectResponse,
)
from nexus_gateway.upstream.http1 import request_head
from nexus_gateway.upstream.proxy import proxy_of
from nexus_gateway.upstream.response import AiohttpResponse, HttpResponse

logger = logging.getLogger("nexus_gateway")

CONNECT_TIMEOUT_S = 3.0
KEEPALIVE_S = 30.0
LARGE_BODY = 512 * 1024
NO_HEADERS: Mapping[str, str] = {}
_TIMEOUT = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT_S)
_DEFAULT_HEADERS = {"User-Agent": f"nexus-gateway/{__version__}", "Accept-Encoding": "identity"}
# A request that sets one of these is left to aiohttp.
_UNUSUAL = frozenset({"connection", "content-length", "expect", "host", "transfer-encoding", "te"})


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
        self._session = session
        self._proxy_of = lru_cache(maxsize=1024)(partial(proxy_of, settings))
        self._has_proxies = bool(settings.proxies)
        self._connector = None
        if settings.direct_path:
            self._connector = DirectConnector(session, _TIMEOUT, self._proxy_of)

    async def post(
        self, http: HttpRequest, extra_headers: Mapping[str, str] = NO_HEADERS
    ) -> HttpResponse:
        """Send a request and wait for the head of its response.

        ClientError, OSError, ValueError or TypeError if there is none. `extra_headers` are those of
        this attempt alone, and valid as they are; a `Via` among them includes the gateway's entry.
        """
        connector, body = self._connector, http.body
        if connector is None or not isinstance(body, bytes) or len(body) > LARGE_BODY:
            return await self._via_aiohttp(http, extra_headers)
        encoded = _encode_head(http.url, tuple(http.headers.items()))
        if encoded is None or (self._has_proxies and self._is_forwarded(encoded[0])):
            return await self._via_aiohttp(http, extra_headers)
        origin, head = encoded
        # Not part of the head, which is cached for all requests with the same headers.
        last = "" if "Via" in extra_headers else self._via_line
        for name, value in extra_headers.items():
            last += f"{name}: {value}\r\n"
        request = b"%b%d\r\n%b\r\n%b" % (head, len(body), last.encode("ascii"), body)
        fresh = False
        while True:
            try:
                borrowed = await connector.borrow(origin, fresh=fresh)
            except PRIVATE_API_ERRORS:
                logger.warning(
                    "aiohttp %s does not support the direct path: using its session",
                    aiohttp.__version__,
                )
                self._connector = None
                break
            response = DirectResponse(borrowed)
            try:
                await response.send(request)
            except BaseException as error:
                if response.handed_over:
                    borrowed.give_back(reusable=False)
                lost = isinstance(error, aiohttp.ServerDisconnectedError | aiohttp.ClientOSError)
                fresh = lost and borrowed.used and response.is_unanswered
                response.close()
                if not fresh:
                    raise
            else:
                return await borrowed.response() if response.handed_over else response
        return await self._via_aiohttp(http, extra_headers)

    def _is_forwarded(self, origin: str) -> bool:
        """Whether a proxy gets the request itself, and not a tunnel."""
        return origin.startswith("http:") and self._proxy_of(URL(origin)) is not None

    async def _via_aiohttp(
        self, http: HttpRequest, extra_headers: Mapping[str, str]
    ) -> AiohttpResponse:
        if extra_headers:
            http = replace(http, headers={**http.headers, **extra_headers})
        reused = SimpleNamespace(yes=False)  # `yes`: it was sent on an idle connection
        try:
            response = await self._post(http, reused)
        except aiohttp.ServerDisconnectedError as error:
            # If a response had begun, its message is that beginning.
            unanswered = reused.yes and isinstance(error.message, str)
            if not (unanswered and isinstance(http.body, bytes)):
                raise
            response = await self._post(http, reused)
        return AiohttpResponse(
            response.status, response.headers, response.content, response.release, response.close
        )

    async def _post(self, http: HttpRequest, reused: SimpleNamespace) -> aiohttp.ClientResponse:
        body = http.body
        # In one piece, a large body would be copied at once, which blocks the loop.
        data = io.BytesIO(body) if isinstance(body, bytes) and len(body) > LARGE_BODY else body
        return await self._session.post(
            http.url,
            data=data,
            headers=http.headers,
            allow_redirects=False,
            proxy=self._proxy_of(URL(http.url)) if self._has_proxies else None,
            trace_request_ctx=reused,
        )


async def _note_reuse(_: object, context: SimpleNamespace, __: object) -> None:
    context.trace_request_ctx.yes = True


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
    connector = aiohttp.TCPConnector(limit=0, ttl_dns_cache=300, keepalive_timeout=KEEPALIVE_S)
    via = f"1.1 nexus-{pseudonym or secrets.token_hex(8)}"
    traces = aiohttp.TraceConfig()
    traces.on_connection_reuseconn.append(_note_reuse)
    async with aiohttp.ClientSession(
        connector=connector,
        timeout=_TIMEOUT,
        cookie_jar=aiohttp.DummyCookieJar(),
        headers={**_DEFAULT_HEADERS, "Via": via},
        read_bufsize=READ_BUFFER,
        trust_env=False,
        trace_configs=[traces],
    ) as session:
        yield Client(session, via, settings)


def exhausted(error: BaseException) -> bool:
    """Return whether an error means that no file descriptor is left."""
    return isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE)
