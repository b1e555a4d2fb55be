"""A log that nobody reads: the gateway serves on, and says afterwards what is missing."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
import re
import signal
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import TextIO

import aiohttp
import pytest

from nexus_gateway.telemetry import log, stderr

SMALL_PIPE = 4096
REPORT = r"lines of the log were dropped, as nothing read it +lines=(\d+)"


class Pipe:
    """A pipe that is read only when the test says so."""

    def __init__(self) -> None:
        self.reading, self.writing = os.pipe()
        fcntl.fcntl(self.writing, fcntl.F_SETPIPE_SZ, SMALL_PIPE)
        self.text = ""

    def read_until(self, pattern: str) -> str:
        """Read until a line matches, and return the match."""
        while not (match := re.search(pattern, self.text)):
            data = os.read(self.reading, SMALL_PIPE)
            assert data, self.text
            self.text += data.decode()
        return match[0]

    def close(self) -> None:
        os.close(self.reading)


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    pipe = Pipe()
    yield pipe
    pipe.close()


@pytest.fixture
def small(pipe: Pipe, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Little waits for a reader."""
    root, ours = logging.getLogger(), logging.getLogger("nexus_gateway")
    handlers, level = root.handlers[:], ours.level
    monkeypatch.setattr(logging, "raiseExceptions", logging.raiseExceptions)
    monkeypatch.setattr(stderr, "MOST_BYTES", 20_000)
    yield
    root.handlers[:] = handlers
    ours.setLevel(level)
    os.close(pipe.writing)


@contextlib.contextmanager
def writing_to(number: int) -> Iterator[TextIO]:
    """Write to a descriptor by `sys.stderr`."""
    with (
        os.fdopen(number, "w", encoding="utf-8", closefd=False) as stream,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setattr(sys, "stderr", stream)
        yield stream


def by_logging(text: str) -> None:
    logging.getLogger("nexus_gateway").info("%s", text)


def by_print(text: str) -> None:
    print(text, file=sys.stderr)


def by_unhandled_exception(text: str) -> None:
    sys.__excepthook__(ValueError, ValueError(text), None)


@pytest.mark.proves("F69")
@pytest.mark.parametrize("say", [by_logging, by_print, by_unhandled_exception])
@pytest.mark.usefixtures("small")
def test_nothing_that_python_writes_waits_for_a_reader(
    say: Callable[[str], None], pipe: Pipe
) -> None:
    with writing_to(pipe.writing), stderr.unblocked():
        log.configure("info", "text", [])
        for number in range(4000):
            say(f"line {number}.")
        assert not stderr.flush()
        dropped = stderr.dropped_lines()
        assert dropped > 1000

        pipe.read_until(REPORT)

        assert re.findall(REPORT, pipe.text) == [str(dropped)]
        said = re.findall(r"line (\d+)\.", pipe.text)
        assert said == [str(number) for number in range(len(said))], "the oldest are kept"
        assert 4000 - len(said) - dropped in (-1, 0), "the end of a line may be dropped alone"
        say("afterwards")
        pipe.read_until("afterwards\n")
        assert stderr.flush()
        assert stderr.dropped_lines() == dropped


@pytest.mark.usefixtures("small")
def test_a_line_over_the_limit_is_dropped_alone(pipe: Pipe) -> None:
    with writing_to(pipe.writing), stderr.unblocked():
        log.configure("info", "text", [])
        by_logging("before")
        by_logging("x" * 30_000)
        pipe.read_until(REPORT)
        by_logging("afterwards")
        pipe.read_until("afterwards\n")
        assert "before" in pipe.text
        assert "xx" not in pipe.text
        assert re.findall(REPORT, pipe.text) == ["1"]


def test_a_reader_that_is_gone_is_counted_and_holds_nothing_up() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with writing_to(writing) as former:
        with stderr.unblocked():
            for number in range(10):
                by_print(f"line {number}")
            assert stderr.flush()
            assert stderr.dropped_lines() == 10
        assert sys.stderr is former
    os.close(writing)


def test_a_stream_in_memory_cannot_block_and_is_left_alone(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with stderr.unblocked():
        by_print("a line")
    assert capsys.readouterr().err == "a line\n"


MAIN = (
    "import sys; from nexus_gateway.telemetry import stderr; stderr.MOST_BYTES = 5_000; "
    "from nexus_gateway.cli import main; sys.exit(main())"
)


@contextlib.asynccontextmanager
async def unread_gateway(
    pipe: Pipe, folder: Path, *flags: str
) -> AsyncIterator[tuple[asyncio.subprocess.Process, str]]:
    """Run a gateway whose log is read up to its URL and no further."""
    env = {k: v for k, v in os.environ.items() if not k.startswith(("GROQ", "PORT", "HOST"))}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", MAIN, "serve", "--demo", "--port", "0", *flags),
        cwd=folder,
        env=env,
        stderr=pipe.writing,
    )
    os.close(pipe.writing)
    try:
        found = await asyncio.to_thread(pipe.read_until, r"listens on http://[\d.:]+")
        yield process, found.removeprefix("listens on ")
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


@pytest.mark.proves("F69")
@pytest.mark.parametrize("workers", ["1", "2"])
async def test_a_log_that_nobody_reads_stops_nothing(
    workers: str, pipe: Pipe, tmp_path: Path
) -> None:
    async with (
        unread_gateway(pipe, tmp_path, "--workers", workers) as (process, url),
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(force_close=True)) as session,
    ):

        async def ask(count: int) -> int:
            done = 0
            for _ in range(count):
                async with session.get(f"{url}/nothing") as answer:
                    done += answer.status == 404
            return done

        assert sum(await asyncio.gather(*(ask(25) for _ in range(20)))) == 500
        async with session.get(f"{url}/metrics") as answer:
            counted = re.search(r"^nexus_log_lines_dropped_total (\d+)", await answer.text(), re.M)
        assert counted is not None
        assert 125 < int(counted[1]) < 500

        await asyncio.to_thread(pipe.read_until, REPORT)
        await ask(1)
        await asyncio.to_thread(pipe.read_until, rf"{REPORT}[^$]*refused ")

        # Nothing reads the last lines either.
        assert sum(await asyncio.gather(*(ask(25) for _ in range(20)))) == 500
        process.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(process.wait(), 30) == 0


@pytest.mark.parametrize("workers", ["1", "2"])
async def test_a_second_signal_does_not_wait_for_the_log(
    workers: str, pipe: Pipe, tmp_path: Path
) -> None:
    async with (
        unread_gateway(pipe, tmp_path, "--workers", workers) as (process, url),
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(force_close=True)) as session,
    ):
        for _ in range(100):
            async with session.get(f"{url}/nothing") as answer:
                assert answer.status == 404
        body = {"messages": [{"role": "user", "content": "long " * 5000}], "stream": True}
        async with session.post(f"{url}/v1/chat/completions", json=body) as answer:
            await answer.content.readany()
            process.send_signal(signal.SIGTERM)
            while True:
                async with session.get(f"{url}/health") as health:
                    if health.status == 503:
                        break
            process.send_signal(signal.SIGTERM)
            assert await asyncio.wait_for(process.wait(), 30) == 130
