"""The process: start, drain, exit."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

import aiohttp
import pytest
from fakes import HELLO
from processes import process


async def stream(session: aiohttp.ClientSession, url: str) -> tuple[int, str]:
    async with session.post(url + "/v1/chat/completions", json=HELLO) as response:
        return response.status, await response.text()


@pytest.mark.proves("I-56")
async def test_the_demo_is_served_without_a_key(tmp_path: Path) -> None:
    async with process(tmp_path) as gateway, aiohttp.ClientSession() as session:
        status, text = await stream(session, gateway.url)
        assert status == 200
        assert text.endswith("data: [DONE]\n\n")
        gateway.signal(signal.SIGTERM)
        assert await gateway.exit_code() == 0
        assert "curl -N" in "".join(gateway.log)


@pytest.mark.proves("F44")
@pytest.mark.parametrize("closed", [">&-", "<&- >&- 2>&-"])
async def test_it_serves_without_standard_streams(
    unused_tcp_port: int, closed: str, tmp_path: Path
) -> None:
    command = f'exec "{sys.executable}" -m nexus_gateway serve --port {unused_tcp_port} {closed}'
    gateway = await asyncio.create_subprocess_exec(
        *("sh", "-c", command), cwd=tmp_path, stderr=asyncio.subprocess.DEVNULL
    )
    url = f"http://127.0.0.1:{unused_tcp_port}/health/live"
    try:
        async with aiohttp.ClientSession() as session, asyncio.timeout(30):
            status = 0
            while not status and gateway.returncode is None:
                try:
                    async with session.get(url) as response:
                        status = response.status
                except aiohttp.ClientError:
                    await asyncio.sleep(0.05)
        assert status == 200
        gateway.terminate()
        assert await asyncio.wait_for(gateway.wait(), 30) == 0
    finally:
        if gateway.returncode is None:
            gateway.kill()
            await gateway.wait()


INVALID = [
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
async def test_invalid_http_causes_neither_a_500_nor_a_traceback(tmp_path: Path) -> None:
    async with process(tmp_path) as gateway:
        port = int(gateway.url.rpartition(":")[2])
        statuses = []
        for invalid in INVALID:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(invalid)
            answer = await asyncio.wait_for(reader.read(), 30)
            statuses.append(int(answer.split()[1]))
            writer.close()
        assert statuses == [400, 400, 400, 400, 415, 404, 200]
        gateway.signal(signal.SIGTERM)
        assert await gateway.exit_code() == 0
    assert "Traceback" not in "".join(gateway.log)


@pytest.mark.proves("I-57")
async def test_wrong_settings_prevent_the_start(tmp_path: Path) -> None:
    name, value = "GROQ_KEY_1", "line\nbreak-secret"
    started = await asyncio.create_subprocess_exec(
        *[sys.executable, "-m", "nexus_gateway", "serve"],
        cwd=tmp_path,
        env={**os.environ, name: value},
        stderr=asyncio.subprocess.PIPE,
    )
    _, errors = await asyncio.wait_for(started.communicate(), 30)
    assert started.returncode == 2
    assert name in errors.decode()
    assert value not in errors.decode()
    assert "Traceback" not in errors.decode()
