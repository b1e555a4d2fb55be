"""Work on large bodies, in a thread, so that the event loop goes on.

It is one thread: two would only take the interpreter from each other, and more memory at a time.
It is not one of the loop's own, as lookups of names may keep those waiting.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar, TypeVarTuple

# A body of fewer bytes takes less than a few milliseconds.
LARGE = 256 * 1024
_THREAD = ThreadPoolExecutor(max_workers=1, thread_name_prefix="large-bodies")
T = TypeVar("T")
Args = TypeVarTuple("Args")


def in_thread(function: Callable[[*Args], T], *args: *Args) -> asyncio.Future[T]:
    """Call a function in the thread; await what it returns."""
    return asyncio.get_running_loop().run_in_executor(_THREAD, function, *args)


async def apart(size: int, function: Callable[[*Args], T], *args: *Args) -> T:
    """Call a function whose work is on so many bytes: in the thread if they are many."""
    return await in_thread(function, *args) if size > LARGE else function(*args)
