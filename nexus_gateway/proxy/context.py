"""One request on its way: what is wanted, of whom, on what terms, and what became of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from nexus_gateway.dialects.base import FullResponse, Request
from nexus_gateway.errors import UpstreamRefused
from nexus_gateway.proxy.record import RequestState
from nexus_gateway.routing.instance import Instance
from nexus_gateway.routing.lease import AttemptHistory, Lease
from nexus_gateway.routing.scheduler import RoutingTarget
from nexus_gateway.upstream.streams import ResponseWriter


@dataclass(frozen=True, slots=True)
class Said:
    """What of an answer went out.

    Args:
        head: the fields of its chunks that stay the same: `id`, `created`, `model`.
        text: its text so far.
        pieces: in how many pieces that came.
    """

    head: Mapping[str, Any]
    text: str
    pieces: int


class CallerGone(Exception):
    """The caller has closed the connection."""


@dataclass(frozen=True, slots=True)
class RequestOptions:
    """What a caller wants beside the answer.

    Args:
        policy: the name of the way to route.
        hedge: ask somebody else as well when the first word lets itself be waited for.
        timeout_s: how long the caller waits for the end, None for as long as it takes.
    """

    policy: str
    hedge: bool = False
    timeout_s: float | None = None


class Sink(ResponseWriter, Protocol):
    """Where an answer goes. Each method raises CallerGone when nobody is there any more."""

    async def start(self, report: RequestState) -> None:
        """Let a stream begin; its head goes out no later than its first events."""

    async def fail(self, status: int, body: dict[str, Any]) -> None:
        """End the stream with an error event; the status is what it would have had."""

    async def whole(self, report: RequestState, answer: FullResponse) -> None:
        """Send an answer in one piece."""


class Memory(Sink, Protocol):
    """A sink that remembers what went through it."""

    def said(self) -> Said | None:
        """Return what of a chat's answer went through, None where it can't be gone on with."""


@dataclass(slots=True)
class RequestContext:
    """One request on its way.

    Attributes:
        request: what an attempt is to bring; the rest of it where an answer broke.
        until_s: when nothing new is begun any more, by the relay's clock.
        patience_s: the same, however little time the caller himself has: by it attempts are
            given their share.
        refusal: what an upstream said that does not know the model; the answer if nobody does.
        original: the request as it came.
        before: how many attempts were made before that do not count.
        memory: what was said so far, where somebody may go on with it.
    """

    request: Request
    target: RoutingTarget
    terms: RequestOptions
    sink: Sink
    report: RequestState
    until_s: float
    patience_s: float
    original: Request
    memory: Memory | None = None
    before: int = 0
    refusal: UpstreamRefused | None = None

    @property
    def trail(self) -> AttemptHistory:
        """What was tried so far."""
        return self.report.trail

    def note_lease(self, lease: Lease) -> None:
        """Put into the report whom an attempt is made at."""
        self.report.instance, self.report.model = lease.instance, lease.model
        self.report.attempts = len(self.trail.attempts) + max(1, len(self.trail.running))

    def attempt(self, lease: Lease) -> tuple[Instance, str, Request]:
        """Return whom an attempt asks, for which model, and for what.

        Where the request is traced, with what makes the upstream go on with the trace.
        """
        request, trace = self.request, self.report.trace
        if trace is not None:
            lease.span = span = trace.attempt(lease, request.stream)
            request = request.traced(span.headers)
        return lease.instance, lease.model, request

    def others(self) -> int:
        """Return how many more could be tried."""
        return len(self.target.instances) - len(self.trail.attempts) - 1
