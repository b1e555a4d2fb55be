"""Streams leak no task, object or descriptor. `bench/soak.py` runs longer."""

from __future__ import annotations

import asyncio
import gc
import os
import sys

import pytest
from fakes import Served, make_instance, serving

from nexus_gateway.testing.upstream import FakeUpstream

STREAMS, AT_ONCE = 200, 20
FEW = 200  # objects that a pool, a cache or the test's client may keep


async def run_streams(served: Served, upstream: FakeUpstream) -> None:
    for _ in range(STREAMS // AT_ONCE):
        answers = await asyncio.gather(*(served.chat() for _ in range(AT_ONCE)))
        assert {answer[0] for answer in answers} == {200}
        upstream.requests.clear()


def usage() -> dict[str, int]:
    gc.collect()
    counts = {"tasks": len(asyncio.all_tasks()), "objects": len(gc.get_objects())}
    if sys.platform == "linux":
        counts["descriptors"] = len(os.listdir("/proc/self/fd"))
    return counts


@pytest.mark.unmeasured
@pytest.mark.proves("F42")
@pytest.mark.usefixtures("each_way")
async def test_streams_do_not_leak(
    upstream: FakeUpstream, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("WARNING", "nexus_gateway")  # pytest keeps every log line
    async with serving(make_instance(upstream), make_instance(upstream, 2)) as served:
        await run_streams(served, upstream)  # pools and caches fill
        before = usage()
        await run_streams(served, upstream)
        after = usage()
    assert after.pop("objects") < before.pop("objects") + FEW
    assert after == before
