"""File descriptors: as many as the system grants, and what happens when there are no more.

Each connection takes one, and a streamed answer two. When all are taken, new callers wait in the
listen queue (uvloop turns them away) until some are free again; whoever is being served notices
nothing, and no instance is blamed for what this process lacks.
"""

from __future__ import annotations

import asyncio
import errno
import logging
from typing import Any

try:
    import resource
except ImportError:  # not on Windows
    resource = None  # type: ignore[assignment]

logger = logging.getLogger("nexus_gateway")

SAY_AGAIN_S = 60.0
_EXHAUSTED = frozenset({errno.EMFILE, errno.ENFILE})


def raise_limit() -> None:
    """Let this process have as many as it may: the soft limit is often 1024."""
    if resource is None:
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        except (OSError, ValueError):
            logger.debug("the limit of file descriptors stays at %d", soft)


def exhausted(error: BaseException) -> bool:
    """Tell whether something failed because there are none left."""
    return isinstance(error, OSError) and error.errno in _EXHAUSTED


class Shortage:
    """Says that there are none left once in a while, where a loop would for each caller."""

    def __init__(self) -> None:
        self._next_s = 0.0

    def __call__(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """Take what the loop could not handle (an asyncio exception handler)."""
        error = context.get("exception")
        if not isinstance(error, OSError) or not exhausted(error):
            loop.default_exception_handler(context)
        elif loop.time() >= self._next_s:
            self._next_s = loop.time() + SAY_AGAIN_S
            logger.error(
                "no file descriptors are left: new callers have to wait; raise the limit "
                "(ulimit -n) or lower MAX_CONCURRENT"
            )
