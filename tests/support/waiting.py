"""To wait for what no event tells of."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

# What is waited for comes in some ms; the limit is for what never comes, on the slowest machine.
LIMIT_S = 30


async def until(true: Callable[[], object]) -> None:
    """Wait until something is true."""
    async with asyncio.timeout(LIMIT_S):
        while not true():  # noqa: ASYNC110
            await asyncio.sleep(0.005)
