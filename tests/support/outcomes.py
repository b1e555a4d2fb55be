"""What becomes of a stream that is passed through."""

from __future__ import annotations

from typing import NamedTuple

from nexus_gateway.errors import BrokenStream
from nexus_gateway.wire.passthrough import ChatPassthrough, Passthrough


class Outcome(NamedTuple):
    """What a caller receives, and how the stream ended: "done", or the kind and text of a fault."""

    sent: bytes
    end: str


def outcome(passthrough: Passthrough, pieces: list[bytes]) -> Outcome:
    sent = b""
    try:
        for piece in pieces:
            sent += passthrough.feed(piece)
        if not (passthrough.done or passthrough.broken):
            sent += passthrough.end()
    except BrokenStream as error:
        passthrough.broken = error
    if passthrough.broken is not None:
        return Outcome(sent, f"{type(passthrough.broken).__name__}: {passthrough.broken.body()}")
    assert passthrough.done
    return Outcome(sent, "done")


def careful(passthrough: Passthrough) -> Passthrough:
    """Return a filter that parses every event."""
    passthrough._shapes_left = 0
    if isinstance(passthrough, ChatPassthrough):
        passthrough._templates_left = 0
    return passthrough
