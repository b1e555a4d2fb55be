"""The gateway survives a lack of file descriptors and a closed log."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import socket
import sys
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from fakes import HELLO, KEYS, make_instance, serving
from processes import process
from raw import asking, connected
from waiting import until

from nexus_gateway.routing.breaker import State
from nexus_gateway.server import process as descriptors
from nexus_gateway.testing.reply import Reply
from nexus_gateway.testing.upstream import FakeUpstream

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="limits of a running process")


@pytest.mark.proves("I-58")
async def test_callers_wait_for_a_file_descriptor_and_are_served(
    upstream: FakeUpstream, tmp_path: Path
) -> None:
    env = {"GROQ_KEY_1": KEYS[0], "GROQ_BASE_URL": upstream.base_url}
    async with process(tmp_path, **env) as gateway, aiohttp.ClientSession() as session:
        pid = gateway.process.pid

        async def chat() -> int:
            url = gateway.url + "/v1/chat/completions"
            async with session.post(url, json=HELLO) as response:
                await response.read()
                return response.status

        assert await chat() == 200
        _, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        assert resource.prlimit(pid, resource.RLIMIT_NOFILE)[0] == hard  # raised at the start
        taken = len(os.listdir(f"/proc/{pid}/fd"))
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (taken + 5, hard))
        address = ("127.0.0.1", int(gateway.url.rpartition(":")[2]))
        crowd = [socket.create_connection(address) for _ in range(20)]
        await asyncio.sleep(0.2)
        assert await chat() == 200  # on the existing connection
        for one in crowd:
            one.close()
        async with asyncio.timeout(30), aiohttp.ClientSession() as fresh:
            while True:
                try:
                    async with fresh.get(gateway.url + "/health") as response:
                        assert response.status == 200
                        break
                except aiohttp.ClientConnectionError:
                    await asyncio.sleep(0.1)
        gateway.signal(signal.SIGTERM)
        assert await gateway.exit_code() == 0
    assert "".join(gateway.log).count("no file descriptors are left") <= 1
    assert "Traceback" not in "".join(gateway.log)


def test_a_shortage_is_logged_once_and_other_errors_always(
    caplog: pytest.LogCaptureFixture,
) -> None:
    loop = asyncio.new_event_loop()
    loop.set_exception_handler(descriptors.FdExhaustionHandler())
    for _ in range(1000):
        error = OSError(24, "Too many open files")
        loop.call_exception_handler({"message": "accept", "exception": error})
    loop.call_exception_handler({"message": "something else"})
    loop.close()
    messages = [record.getMessage().split(":")[0] for record in caplog.records]
    assert messages == ["no file descriptors are left", "something else"]


@pytest.mark.proves("I-58")
@pytest.mark.usefixtures("each_way")
async def test_a_shortage_of_descriptors_is_not_a_failure_of_the_instance(
    upstream: FakeUpstream,
) -> None:
    instance = make_instance(upstream)
    async with serving(instance) as served, connected(served) as (reader, writer):
        await served.health()
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        next_one = os.dup(0)
        os.close(next_one)
        resource.setrlimit(resource.RLIMIT_NOFILE, (next_one, hard))
        try:
            writer.write(asking(stream=True))
            async with asyncio.timeout(30):
                head = await reader.readuntil(b"\r\n\r\n")
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert head.startswith(b"HTTP/1.1 503 ")
        assert b"Retry-After: 1\r\n" in head
        assert instance.default.breaker.state() is State.CLOSED
        assert instance.health.success_rate() in (None, 1)
        assert (await served.chat())[0] == 200


@pytest.mark.proves("F44")
async def test_a_closed_log_does_not_stop_the_gateway(
    upstream: FakeUpstream, tmp_path: Path
) -> None:
    upstream.default = Reply(status=400)
    env = {"GROQ_KEY_1": KEYS[0], "GROQ_BASE_URL": upstream.base_url}
    async with process(tmp_path, **env) as gateway, aiohttp.ClientSession() as session:
        transport = gateway.process._transport.get_pipe_transport(1)  # type: ignore[attr-defined]
        transport.close()
        for _ in range(3):
            url = gateway.url + "/v1/chat/completions"
            async with session.post(url, json=HELLO) as response:
                assert response.status == 400
            await asyncio.sleep(0.15)  # log lines are buffered briefly
        gateway.signal(signal.SIGTERM)
        assert await gateway.exit_code() == 0


FEW = "ulimit -n {limit}; exec {python} -m nexus_gateway serve --port 0"


@pytest.mark.proves("F65")
@pytest.mark.parametrize(
    ("limit", "callers", "workers"), [(64, 200, 1), (64, 200, 2), (600, 700, 1)]
)
async def test_few_descriptors_serve_some_and_refuse_the_others(
    tmp_path: Path, limit: int, callers: int, workers: int
) -> None:
    """With 600 descriptors it runs uvloop, which accepts all waiting connections at once."""
    few = ("-c", "import os, sys; os.execv('/bin/sh', ['sh', '-c', sys.argv[1]])")
    start = (*few, FEW.format(python=sys.executable, limit=limit))
    async with AsyncExitStack() as stack:
        groq, cerebras = [await stack.enter_async_context(FakeUpstream()) for _ in range(2)]
        groq.default = cerebras.default = Reply(first_delay_s=1)
        gateway = await stack.enter_async_context(
            process(
                tmp_path,
                start=start,
                GROQ_KEY_1=KEYS[0],
                GROQ_BASE_URL=groq.base_url,
                CEREBRAS_KEY_1=KEYS[1],
                CEREBRAS_BASE_URL=cerebras.base_url,
                WEB_CONCURRENCY=str(workers),
            )
        )
        if workers > 1:
            await until(lambda: "".join(gateway.log).count("is serving") == workers)
        # Each burst finds the idle connections of the one before, to callers and to an upstream.
        for path, model in (
            ("chat/completions", "groq/a"),
            ("messages", "cerebras/b"),
            ("chat/completions", "groq/a"),
        ):
            connector = aiohttp.TCPConnector(limit=0)
            session = await stack.enter_async_context(aiohttp.ClientSession(connector=connector))
            url, body = f"{gateway.url}/v1/{path}", {**HELLO, "model": model, "max_tokens": 9}
            answers = await asyncio.gather(*(asked(session, url, body) for _ in range(callers)))
            assert {*answers} == {(200, None, None), (503, "1", "error")}
            assert answers.count((200, None, None)) >= limit * 5 // 16  # at 64, 20
        async with session.get(gateway.url + "/health") as response:
            assert response.status == 200
        gateway.signal(signal.SIGTERM)
        assert await gateway.exit_code() == 0
    log = "".join(gateway.log)
    assert log.count(f"may open {limit} files") == workers
    assert log.count("refusing connections with 503") == workers
    assert "no file descriptors are left" not in log


async def asked(
    session: aiohttp.ClientSession, url: str, body: dict[str, Any]
) -> tuple[int, str | None, str | None]:
    """Return the status, `Retry-After`, and Anthropic's `type` of an error."""
    async with session.post(url, json=body) as response:
        answer = await response.json()
        kind = None if response.status == 200 else answer["type"]
        return response.status, response.headers.get("Retry-After"), kind
