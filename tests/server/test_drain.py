"""Shutdown from SIGTERM to exit, with real processes and many streams."""

from __future__ import annotations

import asyncio
import json
import os
import resource
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
from fakes import HELLO, KEYS
from processes import Process, process
from records import ended
from waiting import until

from nexus_gateway.server.process import _on_signals
from nexus_gateway.telemetry import stderr
from nexus_gateway.telemetry.recorder import Recorder

MANY = 1000
DESCRIPTORS = 2 * MANY + 500  # descriptors of this process: the ends of callers and upstream
BODY = json.dumps({**HELLO, "stream": True}).encode()


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def event(text: str, finish: str | None = None) -> bytes:
    choice = {"index": 0, "delta": {"content": text}, "finish_reason": finish}
    body = {"id": "c-1", "object": "chat.completion.chunk", "created": 1, "model": "m"}
    return chunk(b"data: %b\n\n" % json.dumps({**body, "choices": [choice]}).encode())


class Gated:
    """An upstream whose answers send one word, and the rest once the gate is open."""

    def __init__(self) -> None:
        self.open = 0
        self.gate = asyncio.Event()
        self.url = ""

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = head.lower().partition(b"content-length:")[2].partition(b"\r")[0]
                await reader.readexactly(int(length))
                kind = b"Content-Type: text/event-stream\r\nTransfer-Encoding: chunked"
                writer.write(b"HTTP/1.1 200 OK\r\n%b\r\n\r\n%b" % (kind, event("first")))
                self.open += 1
                await self.gate.wait()
                done = chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n"
                writer.write(event(" last") + event("", "stop") + done)
                self.open -= 1
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


@pytest.fixture
async def gated() -> AsyncIterator[Gated]:
    upstream = Gated()
    server = await asyncio.start_server(upstream.answer, "127.0.0.1", 0, backlog=MANY)
    upstream.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
    yield upstream
    upstream.gate.set()
    server.close()


@pytest.fixture
def enough_descriptors() -> None:
    """Allow this process enough descriptors, or skip the test."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < DESCRIPTORS:
        pytest.skip(f"this system allows {hard} open files; {DESCRIPTORS} are needed")
    if soft != resource.RLIM_INFINITY and soft < DESCRIPTORS:
        resource.setrlimit(resource.RLIMIT_NOFILE, (DESCRIPTORS, hard))


def env(upstream: Gated, **more: str) -> dict[str, str]:
    return {"GROQ_KEY_1": KEYS[0], "GROQ_BASE_URL": upstream.url, **more}


async def ask(gateway: Process, body: bytes = BODY) -> bytes:
    """Return all bytes until the gateway closes the connection."""
    reader, writer = await connect(gateway)
    writer.write(head(len(body)) + body)
    answer = await reader.read()
    writer.close()
    return answer


async def connect(gateway: Process) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    port = int(gateway.url.rpartition(":")[2])
    return await asyncio.open_connection("127.0.0.1", port)


def head(length: int, close: bool = True) -> bytes:
    connection = b"close" if close else b"keep-alive"
    return (
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nConnection: %b\r\n"
        b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n" % (connection, length)
    )


async def open_streams(gateway: Process, upstream: Gated, count: int) -> list[asyncio.Task[bytes]]:
    tasks = []
    for start in range(0, count, 100):
        tasks += [asyncio.create_task(ask(gateway)) for _ in range(min(100, count - start))]
        await until(lambda: upstream.open >= len(tasks))  # noqa: B023
    return tasks


async def logged(gateway: Process, text: str) -> None:
    await until(lambda: text in "".join(gateway.log))


@pytest.mark.proves("I-50", "I-51", "F40")
async def test_a_thousand_streams_complete_after_sigterm(
    gated: Gated, tmp_path: Path, enough_descriptors: None
) -> None:
    async with (
        process(
            tmp_path, **env(gated, SHUTDOWN_TIMEOUT_MS="60000", LOG_LEVEL="warning")
        ) as gateway,
        aiohttp.ClientSession() as session,
    ):
        async with session.get(gateway.url + "/health/live") as answer:  # kept alive
            assert answer.status == 200
        streams = await open_streams(gateway, gated, MANY)
        gateway.signal(signal.SIGTERM)
        async with asyncio.timeout(30):
            while True:
                async with session.get(gateway.url + "/health") as answer:
                    health = await answer.json()
                if answer.status == 503:
                    break
        assert (health["status"], health["inFlightRequests"]) == ("draining", MANY)
        refused = (await ask(gateway)).decode()
        assert refused.startswith("HTTP/1.1 503")
        assert "\r\nConnection: close\r\n" in refused
        assert "\r\nRetry-After: 1\r\n" in refused
        assert gated.open == MANY
        gated.gate.set()
        for answer_bytes in await asyncio.gather(*streams):
            assert answer_bytes.startswith(b"HTTP/1.1 200")
            assert answer_bytes.count(b" last") == 1
            assert b"data: [DONE]\n\n" in answer_bytes
        # An idle connection does not delay the exit.
        assert await gateway.exit_code() == 0
    assert "Traceback" not in "".join(gateway.log)


@pytest.mark.proves("I-51", "F40")
async def test_streams_get_an_error_at_the_shutdown_limit(
    gated: Gated, tmp_path: Path, enough_descriptors: None
) -> None:
    async with process(
        tmp_path, **env(gated, SHUTDOWN_TIMEOUT_MS="200", LOG_LEVEL="warning")
    ) as gateway:
        streams = await open_streams(gateway, gated, 100)
        gateway.signal(signal.SIGTERM)
        for answer in await asyncio.gather(*streams):
            assert answer.count(b'"code":"shutting_down"') == 1
            assert b"[DONE]" not in answer
        assert await gateway.exit_code() == 0
    assert "Traceback" not in "".join(gateway.log)


@pytest.mark.proves("F40")
async def test_an_upload_is_served_or_rejected_during_shutdown(
    gated: Gated, tmp_path: Path
) -> None:
    gated.gate.set()
    settings = env(gated, SHUTDOWN_TIMEOUT_MS="600")
    async with process(tmp_path, **settings) as gateway:
        uploads = [await connect(gateway) for _ in range(2)]
        for _, writer in uploads:
            writer.write(head(len(BODY)) + BODY[:20])
        await in_flight(gateway, 2)
        gateway.signal(signal.SIGTERM)
        await logged(gateway, "draining")
        (served, quick), (rejected, _) = uploads
        quick.write(BODY[20:])
        assert b"data: [DONE]" in await served.read()
        answer = (await rejected.read()).decode()
        assert answer.startswith("HTTP/1.1 503")
        assert '"shutting_down"' in answer
        assert "\r\nConnection: close\r\n" in answer
        assert await gateway.exit_code() == 0
        for _, writer in uploads:
            writer.close()
    assert "Traceback" not in "".join(gateway.log)


async def in_flight(gateway: Process, count: int) -> None:
    async with asyncio.timeout(30), aiohttp.ClientSession() as session:
        while True:
            async with session.get(gateway.url + "/health") as answer:
                if (await answer.json())["inFlightRequests"] == count:
                    return


async def test_a_second_signal_loses_no_line_of_a_request_that_has_ended(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    steps: list[str] = []
    recorder = Recorder([lambda record: steps.append(record.id)])
    recorder.later = lambda delay_s, flush: None
    recorder.record(ended(id="a"))
    exited = asyncio.Event()

    def leave(code: int) -> None:
        steps.append("exit")
        exited.set()

    monkeypatch.setattr(os, "_exit", leave)
    monkeypatch.setattr(stderr, "flush", lambda: steps.append("log"))
    stop = _on_signals(recorder)
    try:
        os.kill(os.getpid(), signal.SIGTERM)
        await stop.wait()
        os.kill(os.getpid(), signal.SIGTERM)
        await exited.wait()
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().remove_signal_handler(number)
    assert steps == ["a", "log", "exit"]


@pytest.mark.proves("I-52")
async def test_a_second_signal_ends_the_gateway_at_once(gated: Gated, tmp_path: Path) -> None:
    async with process(tmp_path, **env(gated)) as gateway:
        (stream,) = await open_streams(gateway, gated, 1)
        gateway.signal(signal.SIGINT)
        await logged(gateway, "draining")
        gateway.signal(signal.SIGTERM)
        assert await gateway.exit_code() == 130
        assert not (await stream).endswith(b"0\r\n\r\n")


@pytest.mark.proves("I-53")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_ends_an_idle_gateway(tmp_path: Path, number: signal.Signals) -> None:
    async with process(tmp_path, SHUTDOWN_TIMEOUT_MS="60000") as gateway:
        gateway.signal(number)
        assert await gateway.exit_code() == 0  # without waiting for SHUTDOWN_TIMEOUT_MS


@pytest.mark.proves("I-53")
@pytest.mark.parametrize("after_s", [0.1, 0.25])
async def test_a_signal_during_the_start_ends_the_gateway(tmp_path: Path, after_s: float) -> None:
    started = await asyncio.create_subprocess_exec(
        *[sys.executable, "-m", "nexus_gateway", "serve", "--port", "0"],
        cwd=tmp_path,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    await asyncio.sleep(after_s)
    started.send_signal(signal.SIGTERM)
    out, _ = await asyncio.wait_for(started.communicate(), 30)
    assert started.returncode in (0, -signal.SIGTERM)
    assert b"Traceback" not in out


@pytest.mark.proves("I-55")
@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
async def test_shutdown_leaves_no_warnings(gated: Gated, tmp_path: Path, loop: str) -> None:
    hide = {"PYTHONPATH": str(tmp_path)} if loop == "asyncio" else {}
    (tmp_path / "uvloop.py").write_text("raise ImportError")
    settings = env(gated, **hide, SHUTDOWN_TIMEOUT_MS="300", PYTHONDEVMODE="1", GROQ_KEY_2=KEYS[1])
    async with process(tmp_path, **settings) as gateway, aiohttp.ClientSession() as session:
        streams = await open_streams(gateway, gated, 3)
        _, gone = await connect(gateway)
        gone.write(head(len(BODY)) + BODY)
        _, uploading = await connect(gateway)
        uploading.write(head(len(BODY)) + BODY[:9])
        await in_flight(gateway, 5)
        gone.transport.abort()
        async with session.get(gateway.url + "/v1/events") as events:
            await events.content.readline()
            gateway.signal(signal.SIGHUP)
            await logged(gateway, "reloaded")
            gateway.signal(signal.SIGTERM)
            assert all(b"shutting_down" in answer for answer in await asyncio.gather(*streams))
            assert await gateway.exit_code() == 0
        uploading.close()
    output = "".join(gateway.log)
    for warning in ("Warning", "Traceback", "never retrieved", "Unclosed", "was destroyed"):
        assert warning not in output, output
