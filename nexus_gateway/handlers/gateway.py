"""What the handlers share: the parts of the running gateway."""

from __future__ import annotations

import asyncio
import logging
import random
import re
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from aiohttp import HttpVersion11, web
from multidict import CIMultiDictProxy

from nexus_gateway import errand, json_codec, log
from nexus_gateway.drain import Drain
from nexus_gateway.errors import (
    GatewayError,
    InvalidRequest,
    Overloaded,
    RequestTimeout,
    TooLarge,
    UnsupportedMedia,
)
from nexus_gateway.hook_chain import HookChain
from nexus_gateway.pool import Pool
from nexus_gateway.prices import Spent
from nexus_gateway.record import Observer, RequestRecord
from nexus_gateway.relay import Relay
from nexus_gateway.scheduler import Scheduler
from nexus_gateway.settings import Settings
from nexus_gateway.shared_state import Shared
from nexus_gateway.targets import Targets

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


class Trace(errand.Trace, Protocol):
    """Follows one request to its end."""

    def end(self, record: RequestRecord) -> None:
        """Take what became of it (a `record.Observer`)."""


class Ledger(Protocol):
    """Notes what every request used."""

    @property
    def is_refused(self) -> bool:
        """Whether its place cannot be used, so that none is kept."""

    def spent(self, elsewhere: Mapping[str, float]) -> Spent:
        """Return what requests have cost since it began; told what the other processes counted."""


class Tracing(Protocol):
    """Follows requests."""

    def begin(self, headers: CIMultiDictProxy[str], endpoint: str, path: str) -> Trace:
        """Begin to follow one that has just come, by a door and its path."""


@dataclass(slots=True)
class Gateway:
    """The running gateway, as the handlers know it.

    Args:
        settings: what the owner set.
        pool: the instances.
        scheduler: gives leases on them.
        drain: the requests in flight, and their end.
        targets: who may serve a request.
        hooks: what looks at requests.
        relay: serves them; there once the application runs.
        make_relay: makes another one for other settings; there as long as `relay` is.
        workers: how many processes serve.
        others: what the others of them counted; a figure of this process is added to it.
        decided: set when something was decided that the others must know at once.
        observers: told of every request that has ended.
        refused: told of every other answer that is an error: its status, and its code or type.
        shares: each adds its figures to what this process tells the others.
        ledger: notes what they use, where that is wanted.
        tracing: follows every request, where there is a collector.
    """

    settings: Settings
    pool: Pool
    scheduler: Scheduler
    drain: Drain
    targets: Targets
    hooks: HookChain | None = None
    relay: Relay | None = None
    make_relay: Callable[[Settings], Relay] | None = None
    workers: int = 1
    others: Shared = field(default_factory=Shared)
    decided: asyncio.Event = field(default_factory=asyncio.Event)
    observers: list[Observer] = field(default_factory=list)
    refused: Callable[[int, str], None] | None = None
    shares: list[Callable[[Shared], None]] = field(default_factory=list)
    ledger: Ledger | None = None
    tracing: Tracing | None = None


GATEWAY = web.AppKey("gateway", Gateway)


def gateway_of(request: web.Request) -> Gateway:
    """Return the gateway that serves a request."""
    return request.app[GATEWAY]


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
    log.say(logger, "refused", fields)


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
