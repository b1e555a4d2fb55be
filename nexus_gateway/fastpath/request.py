"""One request on the fast path, from its first attempt to its record."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from nexus_gateway.dialects.base import FullResponse, Request
from nexus_gateway.errors import (
    BrokenStream,
    Draining,
    EndlessStream,
    IdleStream,
    InternalError,
    TruncatedStream,
)
from nexus_gateway.provider import Outcome, Verdict
from nexus_gateway.proxy.context import BegunAttempt, RequestContext, RequestOptions
from nexus_gateway.proxy.relay import BROKEN_STATUS, Relay
from nexus_gateway.routing.attempts import BROKE, CANCELLED, SUCCESS, Attempt, AttemptFailed
from nexus_gateway.upstream.attempt import STREAM_TYPES, note_quotas
from nexus_gateway.upstream.client import SentRequest
from nexus_gateway.upstream.large import LARGE
from nexus_gateway.upstream.streams import CONNECTION_BROKE, INVALID
from nexus_gateway.web.gateway import Gateway
from nexus_gateway.web.responder import (
    STREAM_HEAD,
    attempt_headers,
    full_headers,
    http_date,
    raw_head,
    server_timing,
)
from nexus_gateway.wire.chunks import MALFORMED
from nexus_gateway.wire.error_objects import masked
from nexus_gateway.wire.passthrough import Passthrough

if TYPE_CHECKING:
    from nexus_gateway.fastpath.connection import FastConnection
    from nexus_gateway.fastpath.wheel import Wheel

logger = logging.getLogger("nexus_gateway")

MAX_HEADS = 1024
_HOLE = "\x01"
# Heads of responses with holes for what differs each time.
_heads: dict[tuple[object, ...], str] = {}


def _template(
    context: RequestContext, headers: tuple[tuple[str, str], ...], id_header: str, keep_alive: bool
) -> str:
    """Return the main path's head with %s for the times, each id, the length and the date."""
    fields = {**dict(headers), **attempt_headers(context)}
    fields |= {"Server-Timing": _HOLE, "X-Request-Id": _HOLE}
    if id_header:
        fields[id_header] = _HOLE
    head = raw_head(fields, _HOLE, keep_alive=keep_alive).decode("utf-8", "surrogateescape")
    before_date = head[: head.rindex("Date: ")]
    return before_date.replace("%", "%%").replace(_HOLE, "%s") + "Date: %s\r\n\r\n"


class FastRequest:
    """A request whose first attempt has begun (a `web.request.BegunRequest`).

    Args:
        connection: the caller's; `raw` are its bytes of this request.
    """

    __slots__ = (
        *("_attempt", "_began_s", "_connection", "_first", "_full", "_gateway", "_has_role"),
        *("_heard_s", "_idle_s", "_is_kept", "_is_open", "_is_over", "_longest_s", "_parts"),
        *("_passthrough", "_relay", "_requests_before", "_sent", "_size", "_time", "_total_s"),
        *("_until_s", "_wheel", "_wire", "context", "options", "raw", "request"),
    )

    def __init__(
        self,
        connection: FastConnection,
        gateway: Gateway,
        wheel: Wheel,
        context: RequestContext,
        request: Request,
        options: RequestOptions,
        attempt: Attempt,
        raw: bytes,
    ) -> None:
        self.context = context
        self.request = request
        self.options = options
        self.raw = raw
        self._connection = connection
        self._wire: Any = connection.transport
        self._gateway = gateway
        self._relay: Relay = gateway.relay
        self._wheel = wheel
        self._attempt = attempt
        self._requests_before = attempt.deployment.total_requests
        self._time = connection._loop.time
        self._sent: SentRequest | None = None
        self._parts: list[bytes] = []
        self._size = 0
        self._first = b""
        self._passthrough: Passthrough | None = None
        self._full: FullResponse | None = None
        self._has_role = self._is_open = self._is_over = False
        self._is_kept = True

    # Before anything was sent to the caller

    def send(self) -> None:
        """Send the attempt's request, or let the main path do so."""
        attempt, upstream = self._attempt, self._relay.upstream
        attempt.started_s = self.context.clock()
        try:
            self._sent = upstream.send_at_once(
                attempt.deployment, self.request, self._receive, self._fail
            )
        except AttemptFailed:
            pass  # so it fails there as well
        if self._sent is None:
            self._hand_over()
            return
        limits = upstream.limits
        self._idle_s, self._total_s = limits.idle_s, limits.total_s
        self._longest_s = limit_s = self._relay.response_ms / 1000
        if self.request.stream and attempt.has_alternative:
            limit_s = min(upstream.first_token_limit_s(attempt.instance), limit_s)
        self._began_s = self._sent.sent_s
        self._until_s = self._began_s + limit_s
        self._wheel.add(self, self._until_s)

    def _receive(self, part: bytes) -> None:
        """Take what came before anything was sent to the caller; b"" is the response's end."""
        if part:
            self._parts.append(part)
            self._size += len(part)
        try:
            is_usual = self._size <= LARGE and self._examine(part)
        except Exception:  # the main path meets it again, and knows what it means
            is_usual = False
        if not is_usual:
            self._hand_over()
        elif self._full is not None:
            self._try(self._answer, self._full)
        elif self._passthrough is not None and (
            self._passthrough.started or self._passthrough.done
        ):
            self._try(self._open, self._passthrough)

    def _examine(self, part: bytes) -> bool:
        """Read one more part; return whether the answer is usual so far."""
        assert self._sent is not None
        attempt, response, request = self._attempt, self._sent.response, self.request
        label = self._relay.upstream.label_of(attempt.instance)
        if not request.stream:
            if not part:
                body = b"".join(self._parts)
                self._full = request.dialect.parse_native(body, response.content_type, label)
            return self._full is None or not (attempt.has_alternative and self._full.is_empty)
        passthrough = self._passthrough
        if passthrough is None:
            if response.content_type not in STREAM_TYPES:
                return False
            self._passthrough = passthrough = request.dialect.passthrough(request, label)
            self._note_life(response.head_s)
        self._first += passthrough.feed(part) if part else passthrough.end()
        if passthrough.started or passthrough.done:
            is_unusual_end = attempt.has_alternative and passthrough.is_empty
            return passthrough.broken is None and not is_unusual_end
        if passthrough.has_role and not self._has_role:
            self._has_role = True
            self._note_life(self._time())
        return passthrough.broken is None

    def _note_life(self, at_s: float | None) -> None:
        """Extend the limit for a first token, as `Upstream.stream` does."""
        if at_s is not None and self.request.stream and self._attempt.has_alternative:
            until_s = min(at_s + self._idle_s, self._began_s + self._longest_s)
            self._until_s = max(self._until_s, until_s)

    def _hand_over(self) -> None:
        """Let the main path go on."""
        self._wheel.discard(self)
        if self._sent is not None:
            self._sent.response.take_back(self._parts)
        self.context.begun = BegunAttempt(self._attempt, self._sent)
        self._connection.hand_over(self)

    def take(self) -> None:
        self._connection.begun = None
        self._gateway.drain.remove(self)

    # The answer

    def _answer(self, full: FullResponse) -> None:
        attempt, context = self._attempt, self.context
        self._note_quotas()
        attempt.first_content(self._relay.response_ms, stream=False)
        attempt.usage = full.usage
        attempt.end(SUCCESS)
        context.outcome = SUCCESS.outcome.value
        head = self._head(full_headers(full), f"Content-Length: {len(full.body)}")
        self._wire.write(head + full.body)
        self._finish(200)

    def _open(self, passthrough: Passthrough) -> None:
        assert self._sent is not None
        self._note_quotas()
        self._attempt.first_content(self._relay.first_token_ms, stream=True)
        head = self._head(STREAM_HEAD, "Transfer-Encoding: chunked")
        self._is_open, self.raw = True, b""
        self._parts.clear()
        if passthrough.done:
            self._end(self._first, head)
            return
        self._wire.write(b"%b%x\r\n%b\r\n" % (head, len(self._first), self._first))
        self._heard_s = self._time()
        self._until_s = self._heard_s + self._total_s
        self._wheel.add(self, min(self._heard_s + self._idle_s, self._until_s))
        self._sent.response.push(self._forward, self._fail)

    def _head(self, headers: Mapping[str, str], length: str) -> bytes:
        """Return the head of the caller's response, with the same fields as the main path's."""
        context, id_header = self.context, self.request.dialect.id_header
        history = context.history
        attempt = self._attempt
        self._is_kept = not self._gateway.drain.leaving.is_set()
        fixed = tuple(headers.items()), id_header, self._is_kept
        key = *fixed, history.affinity, attempt.instance.name, attempt.model
        template = _heads.get(key)
        if template is None:
            if len(_heads) >= MAX_HEADS:
                _heads.clear()
            template = _heads[key] = _template(context, *fixed)
        id = history.id
        ids = (id, id) if id_header else (id,)
        values = server_timing(context), *ids, length, http_date(int(time.time()))
        return (template % values).encode("utf-8", "surrogateescape")

    def _note_quotas(self) -> None:
        assert self._sent is not None
        headers = self._sent.response.headers
        note_quotas(self._attempt.deployment, headers, self._requests_before)

    def _forward(self, part: bytes) -> None:
        """Forward a part of a stream; b"" is the response's end."""
        passthrough = self._passthrough
        assert passthrough is not None
        if self._is_over or self._wire.is_closing():  # `caller_left` follows
            return
        self._heard_s = self._time()
        try:
            try:
                block = passthrough.feed(part) if part else passthrough.end()
            except BrokenStream as broken:
                self._break(broken)
                return
            except MALFORMED:
                self._break(BrokenStream(INVALID))
                return
            if passthrough.done:
                self._end(block)
                return
            if block:
                self._wire.write(b"%x\r\n%b\r\n" % (len(block), block))
            if passthrough.broken is not None:
                self._break(passthrough.broken)
        except Exception:
            self._crash()

    def _end(self, block: bytes, head: bytes = b"") -> None:
        """End a stream that is complete."""
        self._write_last(block, head)
        self._release(whole=True)
        self._attempt.end(SUCCESS)
        self.context.outcome = SUCCESS.outcome.value
        self._finish(200)

    def _write_last(self, block: bytes, head: bytes = b"") -> None:
        chunk = b"%x\r\n%b\r\n" % (len(block), block) if block else b""
        self._wire.write(b"%b%b0\r\n\r\n" % (head, chunk))

    def _break(self, broken: BrokenStream) -> None:
        """End a stream that breaks with an error event."""
        self._release(whole=False)
        self._attempt.end(Verdict(Outcome.FAILURE, BROKE + broken.reason))
        self.context.outcome = Outcome.FAILURE.value
        error = masked(broken.body(), self._attempt.instance.key)
        self._write_error(BROKEN_STATUS, error)
        self._finish(200)

    def _write_error(self, status: int, body: dict[str, Any]) -> None:
        self._write_last(self.request.dialect.error_event(status, body, self._passthrough))

    def _release(self, *, whole: bool) -> None:
        """Release the upstream, and note what the answer used so far."""
        if self._passthrough is not None and self._is_open:
            self._attempt.usage = self._passthrough.used()
        if self._sent is not None:
            self._sent.response.release(whole=whole)

    def _finish(self, status: int) -> None:
        if not self._is_over:
            self._is_over = True
            self._wheel.discard(self)
            self._gateway.drain.remove(self)
            self._gateway.recorder.record(self.context.record(status, time.time()))
            self._connection.end(keep_alive=self._is_kept)

    # What may happen at any moment

    def check(self, now_s: float) -> float:
        if not self._is_open:
            assert self._sent is not None
            self._note_life(self._sent.response.head_s)
            if self._until_s > now_s:
                return self._until_s
            self._sent.until_s = self._until_s
            self._hand_over()
            return math.inf
        since_s = now_s if self._connection.writing_paused else self._heard_s
        due_s = min(since_s + self._idle_s, self._until_s)
        if due_s > now_s:
            return due_s
        self._try(self._break, EndlessStream() if self._until_s <= now_s else IdleStream())
        return math.inf

    def pause(self) -> None:
        """The caller takes no more: let its upstream wait."""
        if self._sent is not None:
            self._sent.response.pause()

    def resume(self) -> None:
        if self._sent is not None:
            self._heard_s = self._time()
            self._sent.response.resume()

    def _fail(self, error: Exception) -> None:
        """The connection to the upstream broke, or its response is not for this path."""
        if self._is_open:
            self._try(self._break, TruncatedStream(CONNECTION_BROKE))
        else:
            self._hand_over()

    def caller_left(self) -> None:
        """End it: there is nobody left for the answer."""
        try:
            self._release(whole=False)
        finally:
            BegunAttempt(self._attempt, self._sent).abandon()
            self._finish(499)

    def cancel(self) -> None:
        """End it at the time limit of the shutdown."""
        if self._is_open:
            self._try(self._cut_off)
        else:
            self._hand_over()

    def _cut_off(self) -> None:
        self._release(whole=False)
        self._attempt.end(CANCELLED)
        error = Draining()
        self._write_error(error.status, error.body())
        self._finish(error.status)

    def _try(self, answer: Any, *args: Any) -> None:
        try:
            answer(*args)
        except Exception:
            self._crash()

    def _crash(self) -> None:
        """Break the connection after a fault of the gateway: a head may have been sent."""
        logger.exception("a request failed", extra={"fields": self.context.history.log_fields()})
        if self._sent is not None:
            self._sent.response.release(whole=False)
        self._attempt.end(CANCELLED)
        self.context.outcome = InternalError.code or ""
        self._wire.abort()
        self._finish(500)
