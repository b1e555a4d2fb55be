"""Waits for conditions that no event announces."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

# The conditions become true within milliseconds; the limit is for those that never do.
LIMIT_S = 30


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(LIMIT_S):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


async def until_async(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(LIMIT_S):
        while not await condition():  # noqa: ASYNC110
            await asyncio.sleep(0.02)
