"""What is read of a request: its id, its body, the options in its headers."""

from __future__ import annotations

import asyncio
import logging
import random
import re
from collections.abc import AsyncIterator, Iterator, Mapping
from typing import Any, Protocol

from aiohttp import HttpVersion11, web
from multidict import CIMultiDictProxy

from nexus_gateway.dialects.base import Request
from nexus_gateway.errors import (
    GatewayError,
    InvalidRequest,
    LoopDetected,
    RequestTimeout,
    TooLarge,
    UnknownExpectation,
    UnsupportedMedia,
)
from nexus_gateway.proxy.context import RequestContext, RequestOptions
from nexus_gateway.routing.policies import DEFAULT_POLICY
from nexus_gateway.settings import MAX_MS, parse_bool
from nexus_gateway.upstream.large import LARGE
from nexus_gateway.web.bodies import MB
from nexus_gateway.web.gateway import Gateway, gateway_of
from nexus_gateway.wire import json_codec

logger = logging.getLogger("nexus_gateway")

# However slowly a body comes, it is complete by then.
MAX_BODY_S = 600.0
# After so long a wait for its parts it must have come at this rate, in bytes per second.
GRACE_S = 20.0
LEAST_RATE = 500.0
_VALID_VIA = re.compile(r"[ -~]{1,1000}")
_VALID_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
REQUEST_ID = web.RequestKey("request_id", str)
CALLER = web.RequestKey("caller", str)
EXPLAIN = "X-Nexus-Explain"
EXPLAINED = web.RequestKey("explained", bool)
# Set if a record was made of a request that is answered with an error.
RECORDED = web.RequestKey("recorded", bool)
NO_METHOD = "UNKNOWN"  # aiohttp's method of what is not HTTP
POLICY = "X-Routing-Mode"
HEDGE = "X-Nexus-Hedge"
TIMEOUT = "X-Request-Timeout-Ms"
SESSION = "X-Session-Id"


def note_refusal(
    gateway: Gateway,
    request: web.BaseRequest,
    status: int,
    error: GatewayError,
    why: str | None = None,
) -> None:
    """Count and log a response that is an error, unless a record was made of it."""
    if RECORDED in request:
        return
    reason = error.code or error.kind
    if gateway.meter is not None:
        gateway.meter.refuse(status, reason)
    is_http = request.method != NO_METHOD
    fields = {
        "id": request_id(request),
        "status": status,
        "method": request.method if is_http else None,
        "path": request.path if is_http else None,  # without the query, which may hold a key
        "reason": reason,
        "peer": request.remote or None,
        "why": why,
    }
    logger.info("refused", extra={"fields": fields})


class BegunRequest(Protocol):
    """A request that was admitted and read, and its first attempt begun, before aiohttp read it."""

    context: RequestContext
    request: Request
    options: RequestOptions

    def take(self) -> None:
        """Take it over: its end is the taker's concern from now on."""


def begun_of(request: web.BaseRequest) -> BegunRequest | None:
    """Return what the connection has begun of a request, if anything."""
    begun: BegunRequest | None = getattr(request.protocol, "begun", None)
    return begun


def request_id(request: web.BaseRequest) -> str:
    """Return the request's id: the caller's own if it is valid, else one of ours."""
    id = request.get(REQUEST_ID)
    if id is None:
        request[REQUEST_ID] = id = id_of(request.headers)
    return id


def id_of(headers: Mapping[str, str]) -> str:
    offered = headers.get("X-Request-Id", "")
    return offered if _VALID_ID.fullmatch(offered) else f"req-{random.getrandbits(96):024x}"


def parse_options(headers: Mapping[str, str], gateway: Gateway) -> RequestOptions:
    """Return what a caller asks of the gateway itself.

    Raises:
        InvalidRequest: a header has an invalid value.
    """
    policy = headers.get(POLICY, DEFAULT_POLICY).strip().lower()
    known = gateway.scheduler.policies
    if policy not in known:
        raise InvalidRequest(
            f"{POLICY} must be one of: {', '.join(known)}.",
            param=POLICY,
            code="unknown_routing_mode",
        )
    hedge = _parse_hedge(headers[HEDGE]) if HEDGE in headers else gateway.settings.hedge
    timeout_s = _parse_timeout_s(headers[TIMEOUT]) if TIMEOUT in headers else None
    session = headers.get(SESSION, "") if gateway.settings.affinity else None
    return RequestOptions(policy, hedge, timeout_s, session)


def _parse_timeout_s(text: str) -> float:
    digits = text.strip().lstrip("0")  # zeros in front would hide how long the number is
    if not (digits.isascii() and digits.isdigit()) or int(digits[:18]) > MAX_MS:
        raise InvalidRequest(
            f"{TIMEOUT} must be a whole number from 1 to {MAX_MS}.",
            param=TIMEOUT,
            code="invalid_timeout",
        )
    return int(digits) / 1000


def _parse_hedge(text: str) -> bool:
    try:
        return parse_bool(text)
    except ValueError:
        raise InvalidRequest(
            f"{HEDGE} must be true or false.", param=HEDGE, code="invalid_hedge"
        ) from None


def via_headers(headers: Mapping[str, str], own: str) -> dict[str, str]:
    """Return the header that names the proxies on a request's way, and this gateway as the last.

    Args:
        headers: the caller's, with `Via`.
        own: this gateway's entry.

    Raises:
        LoopDetected: it has passed this gateway before.
    """
    chain = headers["Via"]
    if own.partition(" ")[2] in chain:
        raise LoopDetected
    # Also without what came before, a loop ends where it reaches this gateway again.
    return {"Via": f"{chain}, {own}" if _VALID_VIA.fullmatch(chain) else own}


async def expect(request: web.Request) -> web.Response | None:
    """Answer `Expect: 100-continue`, unless the body would be refused; anything else is a 417."""
    waits = request.headers["Expect"].lower() == "100-continue"
    if not waits:
        error = UnknownExpectation()
        return json_response(error.body(), error.status)
    gateway, length = gateway_of(request), request.content_length or 0
    is_refused = length > gateway.settings.max_body_mb * MB or not gateway.bodies.has_room(length)
    if waits and request.version >= HttpVersion11 and not is_refused:
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        request.writer.output_size = 0  # no head was sent yet
    return None


async def read_body(request: web.Request, gateway: Gateway) -> bytes:
    """Read a request's body.

    Raises:
        TooLarge: it is longer than MAX_BODY_MB; before it is read if its length is declared.
        UnsupportedMedia: it is compressed.
        RequestTimeout: the caller stopped sending, or takes too long.
        Overloaded: MAX_CONCURRENT requests are running when it has arrived.
        BodiesOverloaded: other large bodies take BODY_BUDGET_MB; before it is read if its length
            is declared.
    """
    if request.content.is_eof():  # the usual case: it came with the head
        _check_head(request, gateway)
        return request.content.read_nowait()
    with gateway.drain.receiving(gateway.settings.max_concurrent):
        return await _receive(request, gateway)


async def _receive(request: web.Request, gateway: Gateway) -> bytes:
    pieces = BodyPieces(request, gateway)
    counted, size = request.content_length or 0, 0
    if counted > LARGE:
        gateway.bodies.take(counted)
    received = []
    async for piece in pieces:
        received.append(piece)
        size += len(piece)
        if size > counted + LARGE:  # its length was not declared
            gateway.bodies.take(size - counted)
            counted = size
    return b"".join(received)


class BodyPieces:
    """A request's body piece by piece; raises as `read_body`, between pieces too.

    Not a generator: a reader that is cancelled has not used it up for the next one.
    """

    def __init__(self, request: web.Request, gateway: Gateway) -> None:
        settings = gateway.settings
        _check_head(request, gateway)
        self._limit_mb = settings.max_body_mb
        self._content = request.content
        self._left = settings.max_body_mb * MB
        self._silence_s = settings.idle_timeout_ms / 1000
        self._patience_s = GRACE_S  # grows with each byte; the time between reads is not theirs
        self._until_s = asyncio.get_running_loop().time() + MAX_BODY_S

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        loop = asyncio.get_running_loop()
        begun_s = loop.time()
        wait_s = min(self._silence_s, self._patience_s)
        try:
            async with asyncio.timeout_at(min(begun_s + wait_s, self._until_s)):
                piece = await self._content.readany()
        except TimeoutError:
            raise RequestTimeout from None
        except web.RequestPayloadError:
            raise _bad_framing("The body violates HTTP's framing.") from None
        if not piece:
            raise StopAsyncIteration
        self._patience_s += len(piece) / LEAST_RATE - (loop.time() - begun_s)
        self._left -= len(piece)
        if self._left < 0:
            raise _too_large(self._limit_mb)
        return piece


def _too_large(limit_mb: int) -> TooLarge:
    return TooLarge(f"The body is larger than {limit_mb} MB (MAX_BODY_MB).")


def _bad_framing(message: str) -> InvalidRequest:
    """The end of the body is unknown, so the connection ends with the response."""
    return InvalidRequest(message, code="bad_http", headers={"Connection": "close"})


def _check_head(request: web.Request, gateway: Gateway) -> None:
    """Refuse a body by its headers."""
    headers, limit_mb = request.headers, gateway.settings.max_body_mb
    if "Transfer-Encoding" in headers:
        coding = headers["Transfer-Encoding"].strip().lower()
        if coding != "chunked" or request.version < HttpVersion11:
            raise _bad_framing("Only `Transfer-Encoding: chunked` is supported.")
    if headers.get("Content-Encoding", "identity").lower() != "identity":
        raise UnsupportedMedia("The body must not be compressed: send it without Content-Encoding.")
    if (request.content_length or 0) > limit_mb * MB:
        raise _too_large(limit_mb)


async def read_object(request: web.Request) -> dict[str, Any]:
    """Read a body that must be a JSON object, and be declared as one.

    Admin calls require the type, as a web page can send a form or plain text to another origin
    without a preflight, but not JSON.
    """
    if request.content_type != "application/json":
        raise UnsupportedMedia("Send the body as Content-Type: application/json.")
    try:
        body = json_codec.loads_exact(await read_body(request, gateway_of(request)))
    except json_codec.JSONError as error:
        raise InvalidRequest(f"The body is not valid JSON: {error}.") from error
    if not isinstance(body, dict):
        raise InvalidRequest("The body must be a JSON object.")
    return body


class JoinedHeaders(Mapping[str, str]):
    """A request's headers; the lines of a repeated one are joined, as HTTP allows."""

    def __init__(self, lines: CIMultiDictProxy[str]) -> None:
        self._lines = lines

    def __getitem__(self, name: str) -> str:
        return ", ".join(self._lines.getall(name))

    def __iter__(self) -> Iterator[str]:
        return iter(set(self._lines))

    def __len__(self) -> int:
        return len(set(self._lines))


def json_response(body: object, status: int = 200) -> web.Response:
    return web.json_response(body, status=status)
