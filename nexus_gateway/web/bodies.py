"""How much memory the large bodies of requests may take together."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Iterator
from pathlib import Path

from nexus_gateway.errors import BodiesOverloaded
from nexus_gateway.settings import Settings

try:
    import resource
except ImportError:  # not on Windows
    resource = None  # type: ignore[assignment]

logger = logging.getLogger("nexus_gateway")

MB = 1024 * 1024
# By default, so much of what this process may take is for bodies.
SHARE = 0.5
LEAST = 256 * MB
# A body is in memory as it came, parsed, as it is sent on, and for a moment in steps between.
COPIES = 6
LOG_EVERY_S = 60.0


class BodyBudget:
    """The memory for large bodies, and what is taken of it, in bytes.

    A body counts COPIES times. What a request takes is given back when its task ends.
    """

    def __init__(self, settings: Settings) -> None:
        self.taken = 0
        self._logged_s = float("-inf")
        self.configure(settings)

    def configure(self, settings: Settings) -> None:
        share = max(LEAST, int(memory_limit() * SHARE) // settings.web_concurrency)
        self.most = settings.body_budget_mb * MB or share

    def has_room(self, size: int) -> bool:
        """Return whether a body of this size has room; one always has."""
        return not self.taken or self.taken + size * COPIES <= self.most

    def take(self, size: int) -> None:
        """Take room for so much more of the body of the current task's request.

        Raises:
            BodiesOverloaded: there is none.
        """
        if not self.has_room(size):
            self._log()
            raise BodiesOverloaded
        task = asyncio.current_task()
        assert task is not None
        cost = size * COPIES
        self.taken += cost

        def give_back(_: object) -> None:
            self.taken -= cost

        task.add_done_callback(give_back)

    def _log(self) -> None:
        now_s = asyncio.get_running_loop().time()
        if now_s - self._logged_s >= LOG_EVERY_S:
            self._logged_s = now_s
            logger.warning(
                "large request bodies are refused for now, as those in flight take the %d MB of "
                "BODY_BUDGET_MB",
                self.most // MB,
            )


def memory_limit(root: Path = Path("/")) -> int:
    """Return how many bytes of memory this process may take; 0 if that is unknown."""
    limits = list(_cgroup_limits(root))
    if resource is not None:
        limits.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
        own = resource.getrlimit(resource.RLIMIT_AS)[0]
        limits += [own] if own != resource.RLIM_INFINITY else []
    return min(limits, default=0)


def _cgroup_limits(root: Path) -> Iterator[int]:
    """Yield the limits of this process's cgroups, of version 1 and 2, and of those above them."""
    try:
        lines = (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    mounted = root / "sys/fs/cgroup"
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            top, name = mounted, "memory.max"
        elif "memory" in controllers.split(","):
            top, name = mounted / "memory", "memory.limit_in_bytes"
        else:
            continue
        # In a container the path may be the host's, and only the top is there.
        group = top / path.lstrip("/")
        for folder in (group, *group.parents):
            try:
                text = (folder / name).read_text(encoding="ascii").strip()
            except OSError:
                text = ""
            if text.isdigit():
                yield int(text)
            if folder == top:
                break
