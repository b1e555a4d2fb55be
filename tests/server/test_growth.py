"""What a stream leaves behind: nothing. Longer runs are `bench/soak.py`'s."""

from __future__ import annotations

import asyncio
import gc
import os
import sys

import pytest
from fakes import Served, make_instance, serving

from nexus_gateway.testing.upstream import FakeUpstream

STREAMS, AT_ONCE = 300, 20
FEW = 200  # objects that a pool, a cache or the test's own client may keep or give up


async def many(served: Served, upstream: FakeUpstream) -> None:
    for _ in range(STREAMS // AT_ONCE):
        answers = await asyncio.gather(*(served.chat() for _ in range(AT_ONCE)))
        assert {answer[0] for answer in answers} == {200}
        upstream.requests.clear()


def held() -> dict[str, int]:
    gc.collect()
    found = {"tasks": len(asyncio.all_tasks()), "objects": len(gc.get_objects())}
    if sys.platform == "linux":
        found["descriptors"] = len(os.listdir("/proc/self/fd"))
    return found


@pytest.mark.unmeasured
@pytest.mark.proves("F42")
@pytest.mark.usefixtures("each_way")
async def test_streams_leave_nothing_behind(
    upstream: FakeUpstream, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("WARNING", "nexus_gateway")  # pytest keeps each line that is written
    async with serving(make_instance(upstream), make_instance(upstream, 2)) as served:
        await many(served, upstream)  # pools and caches fill
        before = held()
        await many(served, upstream)
        after = held()
    assert after.pop("objects") < before.pop("objects") + FEW
    assert after == before
