"""Slow and huge bodies: callers beside the usual ones, which must not notice them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator, Set
from dataclasses import dataclass

from nexus_gateway.testing.chaos.plan import ChatRequest

MB = 1024 * 1024
# Of the gateway: one body of the largest size has room, and a second one does not.
LIMITS = {"MAX_BODY_MB": "1", "BODY_BUDGET_MB": "10"}
GRACE_S = 2.0  # instead of 20 s, after which a body must have come at the least rate
PIECES = 32
PAUSE_S = 0.02
CALLERS = 4  # of each kind
HUGE_AT_ONCE = 8


@dataclass(frozen=True, slots=True)
class Sending:
    """How a body is sent: so many bytes, in pieces, with a pause after each.

    Attributes:
        name: for the report.
        size: about how large it is.
        statuses: those that may answer it.
        pieces: how many it has.
        sent: how many are sent; nothing follows, and the connection stays open.
        declared: whether its length is.
    """

    name: str
    size: int
    statuses: Set[int]
    pieces: int = PIECES
    sent: int | None = None
    declared: bool = True

    def body(self, request: ChatRequest) -> bytes:
        body = json.dumps({**request.body(), "metadata": {"pad": ""}}).encode()
        return body[:-3] + b"x" * self.size + body[-3:]

    async def stream(self, body: bytes) -> AsyncIterator[bytes]:
        step = -(-len(body) // self.pieces)
        for at in range(0, len(body), step)[: self.sent]:
            yield body[at : at + step]
            await asyncio.sleep(PAUSE_S)
        if self.sent is not None:
            await asyncio.Event().wait()


_SERVED, _TOO_SLOW, _TOO_LARGE = frozenset({200}), frozenset({408}), frozenset({413})
KINDS = (
    Sending("slow body", 32 * 1024, _SERVED),
    Sending("body that stops", 32 * 1024, _TOO_SLOW, sent=PIECES // 2),
    Sending("dripping body", 2 * 1024, _TOO_SLOW, pieces=2 * 1024),
    Sending("body beyond the limit", MB, _TOO_LARGE),
    # Its room is not taken at once, and may be another's by then.
    Sending("undeclared body beyond the limit", MB, frozenset({413, 503}), declared=False),
)
# What has room when nothing else is in flight.
HUGE = Sending("huge body", MB - 2048, _SERVED)
CROWDED = Sending("huge body", MB - 2048, frozenset({200, 503}))


def requests() -> Iterator[tuple[ChatRequest, Sending]]:
    """Yield the requests of the crowd, which are sent at the same time."""
    kinds = [*(kind for kind in KINDS for _ in range(CALLERS)), *(CROWDED,) * HUGE_AT_ONCE]
    for number, sending in enumerate(kinds):
        yield chat_request(number), sending


def chat_request(number: int) -> ChatRequest:
    return ChatRequest(number, f"body {number}", True, {}, None, None)
