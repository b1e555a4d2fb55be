"""What the handlers share: the parts of the running gateway.

What a caller wants beside the answer, as headers say it.
"""

from __future__ import annotations

import asyncio
import logging
import random
import re
from collections.abc import AsyncIterator, Iterator, Mapping
from typing import Any

from aiohttp import HttpVersion11, web
from multidict import CIMultiDictProxy

from nexus_gateway.errors import (
    GatewayError,
    InvalidRequest,
    Overloaded,
    RequestTimeout,
    TooLarge,
    UnsupportedMedia,
)
from nexus_gateway.proxy.context import RequestOptions
from nexus_gateway.routing.policies import DEFAULT_POLICY
from nexus_gateway.settings import MAX_MS, parse_bool
from nexus_gateway.telemetry import log
from nexus_gateway.web.gateway import Gateway, gateway_of
from nexus_gateway.wire import json_codec

logger = logging.getLogger("nexus_gateway")

# However slowly a body comes, it has come by then.
LONGEST_BODY_S = 600.0
_SANE_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
REQUEST_ID = web.RequestKey("request_id", str)
CALLER = web.RequestKey("caller", str)
EXPLAIN = "X-Nexus-Explain"
EXPLAINED = web.RequestKey("explained", bool)
# Whether a door has told the observers of a request that it answers with an error.
RECORDED = web.RequestKey("recorded", bool)
NO_METHOD = "UNKNOWN"  # aiohttp's word where what came is no HTTP


def admit(gateway: Gateway) -> None:
    """Refuse what would be one request too many, before anything of its body is read.

    Raises:
        Overloaded: MAX_CONCURRENT requests are being served.
    """
    most = gateway.settings.max_concurrent
    if most and gateway.drain.in_flight >= most:
        raise Overloaded


def note_refusal(
    gateway: Gateway,
    request: web.BaseRequest,
    status: int,
    error: GatewayError,
    why: str | None = None,
) -> None:
    """Count an answer that is an error and log it, but for those of which a door has told.

    Args:
        gateway: who answers.
        request: what is answered.
        status: the HTTP status that its caller gets.
        error: which.
        why: more of it, in a few words of ours.
    """
    if RECORDED in request:
        return
    reason = error.code or error.kind
    if gateway.refused is not None:
        gateway.refused(status, reason)
    is_http = request.method != NO_METHOD
    fields = {
        "id": request_id(request),
        "status": status,
        "method": request.method if is_http else None,
        "path": request.path if is_http else None,  # what is asked for behind it may be a key
        "reason": reason,
        "peer": request.remote or None,
        "why": why,
    }
    log.info_line(logger, "refused", fields)


def caller_of(request: web.BaseRequest) -> str:
    """Return which gateway key a request came with: `key-2`, or "" where none was needed."""
    found: str = request.get(CALLER, "")
    return found


def request_id(request: web.BaseRequest) -> str:
    """Return the request's id: the caller's own where it is sane, else one of ours."""
    found = request.get(REQUEST_ID)
    if found is None:
        offered = request.headers.get("X-Request-Id", "")
        found = offered if _SANE_ID.fullmatch(offered) else f"req-{random.getrandbits(96):024x}"
        request[REQUEST_ID] = found
    return found


async def expect(request: web.Request) -> None:
    """Tell a caller who asks before he sends his body to go on, unless it would be refused."""
    wants = request.headers.get("Expect", "").lower() == "100-continue"
    limit = gateway_of(request).settings.max_body_mb * 1024 * 1024
    if wants and request.version >= HttpVersion11 and (request.content_length or 0) <= limit:
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        request.writer.output_size = 0  # no head has gone out yet


async def read_body(request: web.Request) -> bytes:
    """Read a request's body.

    Raises:
        TooLarge: it is longer than MAX_BODY_MB; told before reading where the length is declared.
        UnsupportedMedia: it is compressed.
        RequestTimeout: the caller fell silent, or takes for ever.
    """
    if request.content.is_eof():  # as nearly always: it came with the head
        _check_head(request)
        return request.content.read_nowait()
    return b"".join([piece async for piece in BodyPieces(request)])


class BodyPieces:
    """A request's body piece by piece; raises as `read_body`, in its midst where need be.

    Not a generator: whoever is cancelled while reading has not used it up for the next one.
    """

    def __init__(self, request: web.Request) -> None:
        settings = gateway_of(request).settings
        _check_head(request)
        self._limit_mb = settings.max_body_mb
        self._content = request.content
        self._left = settings.max_body_mb * 1024 * 1024
        self._silence_s = settings.idle_timeout_ms / 1000
        self._until_s = asyncio.get_running_loop().time() + LONGEST_BODY_S

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        now_s = asyncio.get_running_loop().time()
        try:
            async with asyncio.timeout_at(min(now_s + self._silence_s, self._until_s)):
                piece = await self._content.readany()
        except TimeoutError:
            raise RequestTimeout from None
        except web.RequestPayloadError:
            raise _bad_framing("The body breaks HTTP's rules.") from None
        if not piece:
            raise StopAsyncIteration
        self._left -= len(piece)
        if self._left < 0:
            raise _too_large(self._limit_mb)
        return piece


def _too_large(limit_mb: int) -> TooLarge:
    return TooLarge(f"The body is larger than {limit_mb} MB (MAX_BODY_MB).")


def _bad_framing(message: str) -> InvalidRequest:
    """Refuse a body of which nobody can tell where it ends; the connection ends with it."""
    return InvalidRequest(message, code="bad_http", headers={"Connection": "close"})


def _check_head(request: web.Request) -> None:
    """Refuse a body by what its head says."""
    limit_mb = gateway_of(request).settings.max_body_mb
    if "Transfer-Encoding" in request.headers:
        coding = request.headers["Transfer-Encoding"].strip().lower()
        if coding != "chunked" or request.version < HttpVersion11:
            raise _bad_framing("Of all transfer codings only HTTP/1.1's chunks are taken.")
    if request.headers.get("Content-Encoding", "identity").lower() != "identity":
        raise UnsupportedMedia("The body must not be compressed: send it without Content-Encoding.")
    if (request.content_length or 0) > limit_mb * 1024 * 1024:
        raise _too_large(limit_mb)


async def read_object(request: web.Request) -> dict[str, Any]:
    """Read a body that must be a JSON object and says so, as admin calls need.

    The type is asked for because a web page can post a form or plain text to another origin
    without asking first, but not JSON.
    """
    if request.content_type != "application/json":
        raise UnsupportedMedia("Send the body as Content-Type: application/json.")
    try:
        body = json_codec.loads_exact(await read_body(request))
    except json_codec.JSONError as error:
        raise InvalidRequest(f"The body is not valid JSON: {error}.") from error
    if not isinstance(body, dict):
        raise InvalidRequest("The body must be a JSON object.")
    return body


def json_response(body: object, status: int = 200) -> web.Response:
    """Answer with JSON."""
    return web.json_response(body, status=status)


POLICY = "X-Routing-Mode"
HEDGE = "X-Nexus-Hedge"
TIMEOUT = "X-Request-Timeout-Ms"


def parse_options(request: web.Request, gateway: Gateway) -> RequestOptions:
    """Return a caller's terms.

    Raises:
        InvalidRequest: a header says what it may not.
    """
    policy = request.headers.get(POLICY, DEFAULT_POLICY).strip().lower()
    known = gateway.scheduler.policies
    if policy not in known:
        raise InvalidRequest(
            f"{POLICY} must be one of: {', '.join(known)}.",
            param=POLICY,
            code="unknown_routing_mode",
        )
    return RequestOptions(policy, _hedge(request, gateway), _timeout_s(request))


def _timeout_s(request: web.Request) -> float | None:
    text = request.headers.get(TIMEOUT)
    if text is None:
        return None
    digits = text.strip().lstrip("0")  # else a row of them hides how long the number is
    if not (digits.isascii() and digits.isdigit()) or int(digits[:18]) > MAX_MS:
        raise InvalidRequest(
            f"{TIMEOUT} must be a whole number from 1 to {MAX_MS}.",
            param=TIMEOUT,
            code="invalid_timeout",
        )
    return int(digits) / 1000


def _hedge(request: web.Request, gateway: Gateway) -> bool:
    text = request.headers.get(HEDGE)
    if text is None:
        return gateway.settings.hedge
    try:
        return parse_bool(text)
    except ValueError:
        raise InvalidRequest(
            f"{HEDGE} must be true or false.", param=HEDGE, code="invalid_hedge"
        ) from None


class _Incoming:
    """A request as a dialect reads it (a `dialects.dialect.Incoming`)."""

    def __init__(self, request: web.Request) -> None:
        self._request = request

    @property
    def headers(self) -> Mapping[str, str]:
        return _Headers(self._request.headers)

    async def body(self) -> bytes:
        return await read_body(self._request)

    def pieces(self) -> AsyncIterator[bytes]:
        return BodyPieces(self._request)


class _Headers(Mapping[str, str]):
    """A request's headers; those that come in several lines are joined, as HTTP allows."""

    def __init__(self, lines: CIMultiDictProxy[str]) -> None:
        self._lines = lines

    def __getitem__(self, name: str) -> str:
        return ", ".join(self._lines.getall(name))

    def __iter__(self) -> Iterator[str]:
        return iter(set(self._lines))

    def __len__(self) -> int:
        return len(set(self._lines))
