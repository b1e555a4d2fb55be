"""The process itself: start, drain, exit."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

import aiohttp
import pytest
from fakes import HELLO, KEYS
from processes import Process, process

from nexus_gateway.testing.reply import Reply
from nexus_gateway.testing.upstream import FakeUpstream


async def stream(session: aiohttp.ClientSession, url: str) -> tuple[int, str]:
    async with session.post(url + "/v1/chat/completions", json=HELLO) as response:
        return response.status, await response.text()


def upstream_env(upstream: FakeUpstream, **more: str) -> dict[str, str]:
    return {"GROQ_KEY_1": KEYS[0], "GROQ_BASE_URL": upstream.base_url, **more}


async def begin(
    session: aiohttp.ClientSession, gateway: Process, upstream: FakeUpstream, count: int
) -> list[asyncio.Task[tuple[int, str]]]:
    tasks = [asyncio.create_task(stream(session, gateway.url)) for _ in range(count)]
    for _ in range(500):
        if upstream.open == count:
            break
        await asyncio.sleep(0.01)
    assert upstream.open == count
    await asyncio.sleep(0.2)
    return tasks


@pytest.mark.proves("I-56")
async def test_the_demo_answers_without_a_key(tmp_path: Path) -> None:
    async with process(tmp_path) as gateway, aiohttp.ClientSession() as session:
        status, text = await stream(session, gateway.url)
        assert status == 200
        assert text.endswith("data: [DONE]\n\n")
        gateway.signal(signal.SIGTERM)
        assert await gateway.exit_code() == 0
        assert "curl -N" in "".join(gateway.log)


@pytest.mark.proves("F44")
@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&- >&- 2>&-"])
async def test_it_serves_without_the_streams_that_every_process_has(
    unused_tcp_port: int, closed: str, tmp_path: Path
) -> None:
    command = f'exec "{sys.executable}" -m nexus_gateway serve --port {unused_tcp_port} {closed}'
    gateway = await asyncio.create_subprocess_exec(
        *("sh", "-c", command), cwd=tmp_path, stderr=asyncio.subprocess.DEVNULL
    )
    url = f"http://127.0.0.1:{unused_tcp_port}/health/live"
    try:
        async with aiohttp.ClientSession() as session, asyncio.timeout(20):
            status = 0
            while not status and gateway.returncode is None:
                try:
                    async with session.get(url) as response:
                        status = response.status
                except aiohttp.ClientError:
                    await asyncio.sleep(0.05)
        assert status == 200
        gateway.terminate()
        assert await asyncio.wait_for(gateway.wait(), 10) == 0
    finally:
        if gateway.returncode is None:
            gateway.kill()
            await gateway.wait()


@pytest.mark.proves("I-50", "F40")
async def test_sigterm_lets_fifty_streams_end(upstream: FakeUpstream, tmp_path: Path) -> None:
    upstream.default = Reply(delay_s=0.15)
    async with (
        process(tmp_path, **upstream_env(upstream)) as gateway,
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session,
    ):
        tasks = await begin(session, gateway, upstream, 50)
        gateway.signal(signal.SIGTERM)
        await asyncio.sleep(0.1)
        status, text = await stream(session, gateway.url)
        assert status == 503
        assert "shutting_down" in text
        for status, text in await asyncio.gather(*tasks):
            assert status == 200
            assert text.endswith("data: [DONE]\n\n")
        assert await gateway.exit_code() == 0
        assert not any(key in "".join(gateway.log) for key in KEYS)


@pytest.mark.proves("I-51", "F40")
async def test_what_is_left_at_the_limit_gets_an_error_event(
    upstream: FakeUpstream, tmp_path: Path
) -> None:
    upstream.default = Reply(hang_after=2)
    env = upstream_env(upstream, SHUTDOWN_TIMEOUT_MS="300")
    async with process(tmp_path, **env) as gateway, aiohttp.ClientSession() as session:
        tasks = await begin(session, gateway, upstream, 5)
        gateway.signal(signal.SIGINT)
        for status, text in await asyncio.gather(*tasks):
            assert status == 200
            assert '"code":"shutting_down"' in text
            assert "[DONE]" not in text
        assert await gateway.exit_code(5) == 0


ODD = [
    b"GARBAGE\r\n\r\n",
    b"GET /\xff HTTP/1.1\r\nHost: x\r\n\r\n",
    b"POST /v1/x HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
    b"POST /v1/x HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
    b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Encoding: gzip\r\n"
    b"Content-Length: 5\r\nConnection: close\r\n\r\nhello",
    b"GET /v1/models/%ED%A0%80 HTTP/1.0\r\n\r\n",
    b"HEAD /health HTTP/1.0\r\n\r\n",
]


@pytest.mark.proves("F36")
async def test_what_is_not_http_makes_no_500_and_no_traceback(tmp_path: Path) -> None:
    async with process(tmp_path) as gateway:
        port = int(gateway.url.rpartition(":")[2])
        statuses = []
        for odd in ODD:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(odd)
            answer = await asyncio.wait_for(reader.read(), 10)
            statuses.append(int(answer.split()[1]))
            writer.close()
        assert statuses == [400, 400, 400, 400, 415, 404, 200]
        gateway.signal(signal.SIGTERM)
        assert await gateway.exit_code() == 0
    assert "Traceback" not in "".join(gateway.log)


@pytest.mark.proves("I-52", "F40")
async def test_a_second_signal_ends_at_once(upstream: FakeUpstream, tmp_path: Path) -> None:
    upstream.default = Reply(hang_after=2)
    async with (
        process(tmp_path, **upstream_env(upstream)) as gateway,
        aiohttp.ClientSession() as session,
    ):
        tasks = await begin(session, gateway, upstream, 1)
        gateway.signal(signal.SIGTERM)
        await asyncio.sleep(0.2)
        gateway.signal(signal.SIGTERM)
        assert await gateway.exit_code(3) != 0
        (result,) = await asyncio.gather(*tasks, return_exceptions=True)
        assert isinstance(result, aiohttp.ClientError)


@pytest.mark.proves("I-57")
@pytest.mark.parametrize("env", [{"PORT": "abc"}, {"GROQ_KEY_1": "line\nbreak-secret"}])
async def test_wrong_settings_stop_the_start(tmp_path: Path, env: dict[str, str]) -> None:
    started = await asyncio.create_subprocess_exec(
        *[sys.executable, "-m", "nexus_gateway", "serve"],
        cwd=tmp_path,
        env={**os.environ, **env},
        stderr=asyncio.subprocess.PIPE,
    )
    _, errors = await asyncio.wait_for(started.communicate(), 20)
    (name, value), *_ = env.items()
    assert started.returncode == 2
    assert name in errors.decode()
    assert value not in errors.decode()
    assert "Traceback" not in errors.decode()
