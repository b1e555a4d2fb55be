"""Processes that live and do not serve: a worker that hangs, and workers without a supervisor."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import socket
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import aiohttp
import pytest
from fakes import HELLO
from processes import Process, process, worker_pids, write_env
from waiting import until, until_async

from nexus_gateway.server import supervisor
from nexus_gateway.server.supervisor import KILLED_AFTER, Supervisor, WorkerProcess
from nexus_gateway.server.watchdog import Watchdog
from nexus_gateway.testing.reply import Reply
from nexus_gateway.testing.upstream import FakeUpstream

BLOCK = """
import sys, time
from nexus_gateway.server import channel
channel.BEAT_S = 0.3
from nexus_gateway.server import supervisor
supervisor.KILLED_AFTER = {killed_after}
from nexus_gateway.provider import Provider
read_quotas = Provider.read_quotas

def blocking_read_quotas(provider, headers, now_s):
    while "X-Block" in headers:
        open("blocked", "w").close()
        time.sleep(1)
    return read_quotas(provider, headers, now_s)

Provider.read_quotas = blocking_read_quotas
from nexus_gateway.cli import main
sys.exit(main())
"""


def start(killed_after: int = KILLED_AFTER) -> list[str]:
    """Start with fast beats, and with a plugin that an upstream's header blocks."""
    return ["-c", BLOCK.format(killed_after=killed_after)]


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    """A client whose every request may reach any worker, and ends."""
    timeout = aiohttp.ClientTimeout(total=20)
    connector = aiohttp.TCPConnector(force_close=True)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
        yield session


async def chat(session: aiohttp.ClientSession, gateway: Process) -> bool:
    async with session.post(gateway.url + "/v1/chat/completions", json=HELLO) as answer:
        return (await answer.text()).endswith("[DONE]\n\n")


async def count_workers(session: aiohttp.ClientSession, gateway: Process) -> int:
    async with session.get(gateway.url + "/health") as answer:
        workers: int = (await answer.json())["workers"]
        return workers


async def become(session: aiohttp.ClientSession, gateway: Process, workers: int) -> None:
    async def are() -> bool:
        return await count_workers(session, gateway) == workers

    await until_async(are)


async def is_refused(session: aiohttp.ClientSession, gateway: Process) -> bool:
    """Return whether a call is refused at once; TimeoutError if it waits."""
    try:
        await count_workers(session, gateway)
    except aiohttp.ServerTimeoutError:
        raise
    except aiohttp.ClientConnectionError:
        return True
    return False


def alive(pid: int) -> bool:
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it may end in between
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    return False


@pytest.mark.proves("F70")
async def test_a_stopped_worker_loses_no_new_call_and_is_replaced(
    upstream: FakeUpstream, session: aiohttp.ClientSession, tmp_path: Path
) -> None:
    write_env(tmp_path / ".env", upstream)
    async with process(tmp_path, "--workers", "2", start=start()) as gateway:
        victim, other = await worker_pids(gateway)
        await become(session, gateway, 2)
        os.kill(victim, signal.SIGSTOP)
        assert all(await asyncio.gather(*(chat(session, gateway) for _ in range(40))))
        await become(session, gateway, 1)
        await become(session, gateway, 2)
        assert not alive(victim)
        assert alive(other)
        assert all(await asyncio.gather(*(chat(session, gateway) for _ in range(20))))
        gateway.signal(signal.SIGTERM)
        assert await gateway.exit_code() == 0
    said = "".join(gateway.log)
    assert f"worker 1 (pid {victim}) hangs" in said
    assert f"worker 1 (pid {victim}) still hangs and is killed" in said
    assert f"pid {other}) hangs" not in said


async def test_a_worker_that_runs_again_is_kept(
    upstream: FakeUpstream, session: aiohttp.ClientSession, tmp_path: Path
) -> None:
    write_env(tmp_path / ".env", upstream)
    async with process(tmp_path, "--workers", "2", start=start(10_000)) as gateway:
        victim, _ = pids = await worker_pids(gateway)
        await become(session, gateway, 2)
        os.kill(victim, signal.SIGSTOP)
        await become(session, gateway, 1)
        os.kill(victim, signal.SIGCONT)
        await become(session, gateway, 2)
        assert all(await asyncio.gather(*(chat(session, gateway) for _ in range(20))))
        assert all(alive(pid) for pid in pids)
        await until(lambda: f"worker 1 (pid {victim}) runs again" in "".join(gateway.log))


@pytest.mark.proves("F70")
async def test_a_worker_that_a_plugin_blocks_shows_where_and_is_replaced(
    upstream: FakeUpstream, session: aiohttp.ClientSession, tmp_path: Path
) -> None:
    write_env(tmp_path / ".env", upstream)
    upstream.script(Reply(headers={"X-Block": "1"}))
    async with process(tmp_path, "--workers", "2", start=start()) as gateway:
        await worker_pids(gateway)
        blocked = asyncio.create_task(chat(session, gateway))
        await until((tmp_path / "blocked").exists)  # what it accepted before then is lost with it
        assert all(await asyncio.gather(*(chat(session, gateway) for _ in range(40))))
        with pytest.raises(aiohttp.ClientError):
            await blocked
        await until(lambda: "".join(gateway.log).count("is serving") == 3)
        await become(session, gateway, 2)
    assert re.search(r'File "<string>", line \d+ in blocking_read_quotas', "".join(gateway.log))


class Silent:
    """A worker without a process; what it is told is in `told`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, beats: bool = True) -> None:
        self.told: list[str] = []
        tell = self.told.append
        self.worker = WorkerProcess(
            0, SimpleNamespace(pid=1), SimpleNamespace(send=lambda kind, **_: tell(kind))
        )
        self.worker.missed = 0 if beats else None
        monkeypatch.setattr(self.worker, "kill", lambda: tell("kill"))
        monkeypatch.setattr(self.worker, "dump_stacks", lambda: tell("dump"))


@pytest.mark.parametrize(
    ("beats", "tick_s", "told"),
    [
        (True, 1.0, ["listen", "dump", "kill"]),
        (True, 100.0, []),  # the machine slept, or the supervisor was stopped as well
        (False, 1.0, []),  # a worker of an older version
    ],
)
async def test_only_a_worker_that_is_silent_while_others_run_is_killed(
    beats: bool, tick_s: float, told: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    silent = Silent(monkeypatch, beats=beats)
    watching = Supervisor(SimpleNamespace(sockets=[[]]), lambda _: None)
    watching._workers.add(silent.worker)
    watching._slots[0] = silent.worker
    passed = asyncio.Event()
    ticks = 0

    def monotonic() -> float:
        nonlocal ticks
        ticks += 1
        if ticks > 4 * KILLED_AFTER:
            passed.set()
        return ticks * tick_s

    async def sleep(_: float) -> None:
        await asyncio.wait([asyncio.ensure_future(passed.wait())], timeout=0)

    monkeypatch.setattr(supervisor, "time", SimpleNamespace(monotonic=monotonic))
    monkeypatch.setattr(supervisor, "BEAT_S", 1.0)
    monkeypatch.setattr(supervisor, "asyncio", SimpleNamespace(**{**vars(asyncio), "sleep": sleep}))
    task = asyncio.ensure_future(watching._watch_beats())
    await passed.wait()
    task.cancel()
    assert silent.told == told


@pytest.mark.proves("F71")
@pytest.mark.parametrize("hangs", [False, True], ids=["", "one hangs"])
async def test_without_a_supervisor_nobody_waits_and_the_port_is_free(
    hangs: bool,
    upstream: FakeUpstream,
    session: aiohttp.ClientSession,
    tmp_path: Path,
) -> None:
    upstream.default = Reply(text="a b c d e f g h", delay_s=0.2)
    write_env(tmp_path / ".env", upstream)
    async with process(tmp_path, "--workers", "2") as gateway:
        pids = await worker_pids(gateway)
        ending = pids[:1] if hangs else pids
        streams = [asyncio.create_task(chat(session, gateway)) for _ in range(0 if hangs else 6)]
        await until(lambda: upstream.open == len(streams))
        with contextlib.ExitStack() as at_end:
            if hangs:
                at_end.callback(os.kill, pids[1], signal.SIGKILL)
                os.kill(pids[1], signal.SIGSTOP)
            gateway.signal(signal.SIGKILL)
            await until(lambda: not alive(gateway.process.pid))
            await until_async(lambda: is_refused(session, gateway))
            assert all([await is_refused(session, gateway) for _ in range(20)])
            port = gateway.url.rpartition(":")[2]
            async with process(tmp_path, "--workers", "2", "--port", port) as restarted:
                assert await chat(session, restarted)
            assert all(await asyncio.gather(*streams)), "running streams end"
            await until(lambda: not any(alive(pid) for pid in ending))


@pytest.fixture
def systemd(tmp_path: Path) -> Iterator[socket.socket]:
    """What systemd listens on."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notified:
        notified.bind(str(tmp_path / "notify"))
        notified.setblocking(False)
        yield notified


def received(notified: socket.socket) -> list[bytes]:
    messages = []
    with contextlib.suppress(BlockingIOError):
        while True:
            messages.append(notified.recv(100))
    return messages


@pytest.mark.parametrize("workers", ["1", "2"])
async def test_systemd_is_told_until_the_exit_that_the_loop_runs(
    workers: str,
    upstream: FakeUpstream,
    session: aiohttp.ClientSession,
    systemd: socket.socket,
    tmp_path: Path,
) -> None:
    upstream.default = Reply(text="a b", delay_s=1)
    write_env(tmp_path / ".env", upstream)
    env: dict[str, Any] = {"NOTIFY_SOCKET": systemd.getsockname(), "WATCHDOG_USEC": "100000"}
    async with process(tmp_path, "--workers", workers, **env) as gateway:
        await until(lambda: received(systemd) == [b"WATCHDOG=1"])
        stream = asyncio.create_task(chat(session, gateway))
        await until(lambda: upstream.open)
        gateway.signal(signal.SIGTERM)
        await until(lambda: "draining" in "".join(gateway.log))
        received(systemd)
        await until(lambda: received(systemd) == [b"WATCHDOG=1"])
        assert await stream
        assert await gateway.exit_code() == 0


async def test_systemd_is_not_told_while_the_loop_hangs(systemd: socket.socket) -> None:
    environ = {
        "NOTIFY_SOCKET": systemd.getsockname(),
        "WATCHDOG_USEC": "1000",
        "WATCHDOG_PID": str(os.getpid()),
    }
    watchdog = Watchdog.from_env(environ)
    assert watchdog is not None

    async def main() -> int:
        await until(lambda: received(systemd))
        received(systemd)
        time.sleep(0.05)  # noqa: ASYNC251
        assert received(systemd) == []
        return 3

    assert await watchdog.watch(main()) == 3


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"NOTIFY_SOCKET": "/run/notify"},
        {"WATCHDOG_USEC": "1000"},
        {"NOTIFY_SOCKET": "/run/notify", "WATCHDOG_USEC": "1000", "WATCHDOG_PID": "1"},
    ],
)
def test_without_systemd_or_for_another_process_there_is_no_watchdog(
    environ: dict[str, str],
) -> None:
    assert Watchdog.from_env(environ) is None
