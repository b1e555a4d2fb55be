"""A request as a fake upstream received it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any

from nexus_gateway.wire import json_codec


@dataclass
class Received:
    """A request as it came, and what became of its answer.

    Attributes:
        key: the key that it carries in a header.
        headers: all of them.
        raw: the body.
        path: without the query.
        target: as it stood in the request's first line.
        finished: whether the answer was sent whole.
        left: set when the client left before that.
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
        """The body, parsed."""
        parsed: dict[str, Any] = json_codec.loads(self.raw)
        return parsed

    async def gone(self, within_s: float = 2.0) -> bool:
        """Wait until the client has gone before its answer was whole; False if it has not."""
        try:
            await asyncio.wait_for(self.left.wait(), within_s)
        except TimeoutError:
            return False
        return True
