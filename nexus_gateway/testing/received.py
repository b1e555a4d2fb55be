"""A request as a fake upstream received it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any

from nexus_gateway.wire import json_codec


@dataclass
class Received:
    """A received request, and whether it was answered.

    Attributes:
        key: the key in its headers, "" if there is none.
        headers: all of its headers.
        raw: its body.
        path: its path, without the query.
        target: its path as sent, with the query.
        finished: whether the answer was sent completely.
        left: set if the client disconnected before that.
    """

    key: str
    headers: dict[str, str]
    raw: bytes
    path: str
    target: str = ""
    finished: bool = False
    left: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def body(self) -> dict[str, Any]:
        """The parsed body; ValueError if it is not JSON."""
        parsed: dict[str, Any] = json_codec.loads(self.raw)
        return parsed

    async def gone(self, within_s: float = 2.0) -> bool:
        """Wait until the client disconnects before its answer is complete; False if it does not."""
        try:
            await asyncio.wait_for(self.left.wait(), within_s)
        except TimeoutError:
            return False
        return True
