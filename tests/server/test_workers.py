"""Several workers share one port: real sockets, real processes."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from fakes import HELLO, KEYS
from processes import listening_sockets, process, worker_pids, write_env
from waiting import until_async

from nexus_gateway.cli import workers
from nexus_gateway.cli.main import main
from nexus_gateway.errors import ConfigError
from nexus_gateway.server.sockets import listen
from nexus_gateway.server.supervisor import Supervisor, WorkerSpawner, pause_s
from nexus_gateway.telemetry import log
from nexus_gateway.testing.reply import Reply
from nexus_gateway.testing.upstream import FakeUpstream

GROQ = "Groq (Key #1)"
START = ["-m", "nexus_gateway"]
# As if uvloop were not installed.
_MAIN = "from nexus_gateway.cli import main; sys.exit(main())"
ON_ASYNCIO = ["-c", f"import sys; sys.modules['uvloop'] = None; {_MAIN}"]


class Supervised:
    """A supervisor in this process, and its workers."""

    def __init__(self, supervisor: Supervisor, running: asyncio.Task[int], url: str) -> None:
        self.supervisor = supervisor
        self.running = running
        self.url = url
        self.env_file = Path()
        self.session: aiohttp.ClientSession

    def pids(self) -> list[int]:
        return [worker.process.pid for worker in self.supervisor._slots if worker]

    async def health(self) -> dict[str, Any]:
        # A new connection each time: any worker may accept it.
        async with self.session.get(
            self.url + "/health", headers={"Connection": "close"}
        ) as answer:
            health: dict[str, Any] = await answer.json()
            return health

    async def instance(self) -> dict[str, Any]:
        return next(p for p in (await self.health())["providers"] if p["name"] == GROQ)

    async def all_see(self, field: str, value: object) -> None:
        async def seen() -> bool:
            return all([(await self.instance())[field] == value for _ in range(12)])

        await until_async(seen)

    async def chat(self) -> tuple[int, str]:
        async with self.session.post(self.url + "/v1/chat/completions", json=HELLO) as answer:
            return answer.status, await answer.text()

    async def toggle(self, enabled: bool) -> None:
        body = {"name": GROQ, "enabled": enabled}
        async with self.session.post(self.url + "/v1/providers/toggle", json=body) as answer:
            assert answer.status == 200


def environ(**more: str) -> dict[str, str]:
    hidden = ("GROQ", "PORT", "HOST", "WEB_CONCURRENCY")
    return {**{k: v for k, v in os.environ.items() if not k.startswith(hidden)}, **more}


@pytest.fixture
async def gateway(
    upstream: FakeUpstream, tmp_path: Path, request: pytest.FixtureRequest
) -> AsyncIterator[Supervised]:
    """Two workers in front of one key, with the settings in a file."""
    start = getattr(request, "param", START)
    env_file = tmp_path / "settings.env"
    write_env(env_file, upstream, MAX_ATTEMPTS="1")  # without pauses
    closing = contextlib.ExitStack()
    sockets = closing.enter_context(listening_sockets("127.0.0.1", 2))
    command = [sys.executable, *start, "serve", "--env-file", str(env_file)]
    spawner = WorkerSpawner([*command, "--workers", "2"], environ(), "127.0.0.1", sockets)
    announced = asyncio.Event()
    supervisor = Supervisor(spawner, lambda _: announced.set())
    running = asyncio.create_task(supervisor.run())
    served = Supervised(supervisor, running, f"http://127.0.0.1:{spawner.port}")
    served.env_file = env_file
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector) as served.session:
        try:
            await asyncio.wait_for(announced.wait(), 30)

            async def both_serve() -> bool:
                return (await served.health())["workers"] == 2

            await until_async(both_serve)
            yield served
        finally:
            if not running.done():
                supervisor.stop()
            with closing:
                assert await asyncio.wait_for(running, 30) == 0


@contextlib.asynccontextmanager
async def load(gateway: Supervised) -> AsyncIterator[list[tuple[int, str]]]:
    """Send requests continuously, on persistent and on new connections; yield the answers."""
    answers: list[tuple[int, str]] = []
    over = asyncio.Event()

    async def ask(session: aiohttp.ClientSession) -> None:
        while not over.is_set():
            async with session.post(gateway.url + "/v1/chat/completions", json=HELLO) as answer:
                answers.append((answer.status, await answer.text()))
            await asyncio.sleep(0.05)  # all that share the processor are slow to start

    fresh = aiohttp.TCPConnector(force_close=True)
    async with (
        aiohttp.ClientSession() as kept,
        aiohttp.ClientSession(connector=fresh) as unkept,
        asyncio.TaskGroup() as group,
    ):
        for session in (kept, kept, kept, unkept, unkept):
            group.create_task(ask(session))
        yield answers
        over.set()


def all_complete(answers: list[tuple[int, str]]) -> bool:
    return all(status == 200 and text.endswith("[DONE]\n\n") for status, text in answers)


async def test_state_of_one_worker_applies_to_all(
    gateway: Supervised, upstream: FakeUpstream
) -> None:
    await gateway.toggle(False)
    await gateway.all_see("enabled", False)
    assert (await gateway.chat())[0] == 503
    await gateway.toggle(True)
    await gateway.all_see("enabled", True)
    assert [(await gateway.chat())[0] for _ in range(8)] == [200] * 8

    async def counted() -> bool:
        return [(await gateway.instance())["metrics"]["totalRequests"] for _ in range(8)] == [8] * 8

    await until_async(counted)
    upstream.script(Reply(status=401))
    assert (await gateway.chat())[0] == 503
    await gateway.all_see("parkReason", "bad_key")
    await gateway.toggle(True)
    await gateway.all_see("parkReason", None)
    upstream.default = Reply(status=500)
    while (await gateway.instance())["circuitState"] == "CLOSED":
        await gateway.chat()
    await gateway.all_see("circuitState", "OPEN")


@pytest.mark.parametrize("gateway", [ON_ASYNCIO], ids=["asyncio"], indirect=True)
async def test_a_dead_worker_is_replaced_without_refusing_requests(gateway: Supervised) -> None:
    await gateway.toggle(False)
    await gateway.all_see("enabled", False)
    victim, other = gateway.pids()
    os.kill(victim, signal.SIGKILL)

    async def replaced() -> bool:
        assert (await gateway.instance())["enabled"] is False  # each on a new connection
        return len({victim, *gateway.pids()}) == 3

    await until_async(replaced)
    assert other in gateway.pids()
    await gateway.all_see("enabled", False)


class Page:
    """The live page's list of requests; it reconnects when its worker is gone."""

    def __init__(self, gateway: Supervised) -> None:
        self.gateway = gateway
        self.snapshots = 0
        self.listed: list[str] = []
        self._last_id = ""

    async def run(self) -> None:
        while True:
            with contextlib.suppress(aiohttp.ClientError):
                await self._listen()
            await asyncio.sleep(0.02)

    async def _listen(self) -> None:
        head = {"Last-Event-ID": self._last_id}
        name = ""
        async with self.gateway.session.get(
            self.gateway.url + "/v1/events", headers=head
        ) as opened:
            async for line in opened.content:
                field, _, value = line.decode().rstrip().partition(": ")
                if field == "event":
                    name = value
                elif field == "id":
                    self._last_id = value
                elif field == "data":
                    self._receive(name, json.loads(value))

    def _receive(self, name: str, data: dict[str, Any]) -> None:
        if name == "snapshot":
            self.snapshots += 1
            self.listed = [request["id"] for request in data["requests"]]
        elif name == "request":
            self.listed.append(data["id"])

    async def wait_for(self, ids: list[str]) -> None:
        await until_async(lambda: _is(sorted(self.listed) == ids))


async def ask_on_new_connections(gateway: Supervised, ids: list[str]) -> None:
    """Send each request on a new connection: any worker may accept it."""

    async def ask(id: str) -> None:
        head = {"Connection": "close", "X-Request-Id": id}
        url = gateway.url + "/v1/chat/completions"
        async with gateway.session.post(url, json=HELLO, headers=head) as answer:
            assert (await answer.text()).endswith("[DONE]\n\n")

    await asyncio.gather(*(ask(id) for id in ids))


async def test_the_page_shows_requests_of_all_workers_and_outlives_each(
    gateway: Supervised, upstream: FakeUpstream
) -> None:
    ids = [f"call-{number:02}" for number in range(48)]
    broker = gateway.supervisor._broker
    known = broker._board._requests._entries
    upstream.script(Reply(first_delay_s=0.5))
    await ask_on_new_connections(gateway, ids[:16])

    async def all_report_the_slow_one() -> bool:
        ttft_ms = [(await gateway.instance())["metrics"]["ttftP95Ms"] or 0 for _ in range(8)]
        return min(ttft_ms) >= 500

    await until_async(all_report_the_slow_one)
    assert known == [], "no page listens"
    page = Page(gateway)
    page_task = asyncio.create_task(page.run())
    try:
        await page.wait_for(ids[:16])
        await ask_on_new_connections(gateway, ids[16:32])
        await page.wait_for(ids[:32])
        assert page.snapshots == 1, "the snapshot had all earlier requests"
        await until_async(lambda: _is(len(known) == 32))
        assert len({worker for _, worker, _ in known}) == 2, "both workers served"
        (listening_worker,) = (
            w for w in gateway.supervisor._workers if broker._hub.has_listeners(w.number)
        )
        listening_worker.kill()
        await until_async(lambda: _is(page.snapshots == 2))
        assert sorted(page.listed) == ids[:32]
        await ask_on_new_connections(gateway, ids[32:])
        await page.wait_for(ids)
    finally:
        page_task.cancel()


@pytest.mark.proves("I-54")
async def test_a_reload_loses_no_request(
    gateway: Supervised, upstream: FakeUpstream, caplog: pytest.LogCaptureFixture
) -> None:
    old = gateway.pids()
    upstream.script(Reply(text="a b c d", delay_s=0.5))
    stream = asyncio.create_task(gateway.chat())
    await until_async(lambda: _is(upstream.open == 1))
    async with load(gateway) as answers:
        write_env(gateway.env_file, upstream, key=KEYS[1], PORT="4000")
        gateway.supervisor.reload()
        await until_async(lambda: _is(not set(old) & set(gateway.pids())))
        asked = len(answers)
        await until_async(lambda: _is(len(answers) > asked + 20))
    assert all_complete([*answers, await stream])
    assert upstream.requests[-1].key == KEYS[1]
    assert "PORT: changed, but read at the start only" in caplog.text
    before = gateway.pids()
    write_env(gateway.env_file, upstream, FIRST_TOKEN_TIMEOUT_MS="soon")
    gateway.supervisor.reload()
    await until_async(lambda: _is("FIRST_TOKEN_TIMEOUT_MS must be" in caplog.text))
    gateway.env_file.write_text("")  # as while it is being written
    gateway.supervisor.reload()
    await until_async(lambda: _is("no provider has a key any more" in caplog.text))
    assert gateway.pids() == before
    assert (await gateway.chat())[0] == 200


async def _is(true: bool) -> bool:
    return true


async def test_a_worker_that_gets_sigterm_is_replaced_first(gateway: Supervised) -> None:
    old = gateway.pids()
    async with load(gateway) as answers:
        os.kill(old[1], signal.SIGHUP)  # ignored
        os.kill(old[1], signal.SIGTERM)
        await until_async(lambda: _is(old[1] not in gateway.pids() and len(gateway.pids()) == 2))
        asked = len(answers)
        await until_async(lambda: _is(len(answers) > asked + 20))
    assert all_complete(answers)
    assert gateway.pids()[0] == old[0]


async def test_wrong_settings_are_reported_once(tmp_path: Path) -> None:
    with listening_sockets("127.0.0.1", 2) as sockets:
        command = [sys.executable, "-m", "nexus_gateway", "serve", "--workers", "2"]
        spawner = WorkerSpawner(command, environ(PORT="no-port"), "127.0.0.1", sockets)
        with pytest.raises(ConfigError, match="PORT must be"):
            await Supervisor(spawner, lambda _: None).run()
        spawner = WorkerSpawner(
            [sys.executable, "-c", "raise SystemExit(3)"], {}, "127.0.0.1", sockets
        )
        assert await Supervisor(spawner, lambda _: None).run() == 3


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    # Without an init process it stays a zombie.
    return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"


@pytest.mark.proves("I-50")
async def test_sigterm_to_all_processes_drains_open_streams(
    upstream: FakeUpstream, tmp_path: Path
) -> None:
    upstream.default = Reply(text="a b c d e f", delay_s=0.1)
    write_env(tmp_path / ".env", upstream)
    env = {"WEB_CONCURRENCY": "2"}
    async with process(tmp_path, **env) as gateway, aiohttp.ClientSession() as session:
        pids = await worker_pids(gateway)

        async def stream() -> str:
            async with session.post(gateway.url + "/v1/chat/completions", json=HELLO) as answer:
                return await answer.text()

        streams = [asyncio.create_task(stream()) for _ in range(4)]
        await until_async(lambda: _is(upstream.open == 4))
        gateway.signal(signal.SIGTERM)
        for pid in pids:
            os.kill(pid, signal.SIGTERM)
        assert all(text.endswith("[DONE]\n\n") for text in await asyncio.gather(*streams))
        assert await gateway.exit_code() == 0
    assert not any(alive(pid) for pid in pids)
    assert "with 2 workers" in "".join(gateway.log)


async def test_workers_exit_without_a_supervisor(tmp_path: Path) -> None:
    async with process(tmp_path, "--workers", "2") as gateway:
        pids = await worker_pids(gateway)
        gateway.signal(signal.SIGKILL)
        await until_async(lambda: _is(not any(alive(pid) for pid in pids)))


@pytest.mark.proves("I-52")
async def test_a_second_signal_ends_all_processes_at_once(
    upstream: FakeUpstream, tmp_path: Path
) -> None:
    upstream.default = Reply(hang_after=2)
    write_env(tmp_path / ".env", upstream)
    async with (
        process(tmp_path, "--workers", "2") as gateway,
        aiohttp.ClientSession() as session,
    ):
        pids = await worker_pids(gateway)
        async with session.post(gateway.url + "/v1/chat/completions", json=HELLO) as answer:
            await answer.content.readany()
            gateway.signal(signal.SIGINT)
            await until_async(lambda: _is("draining" in "".join(gateway.log)))
            gateway.signal(signal.SIGINT)
            assert await gateway.exit_code() == 130
            await until_async(lambda: _is(not any(alive(pid) for pid in pids)))
            with pytest.raises(aiohttp.ClientError):
                await answer.read()


def test_restart_pauses_grow_up_to_a_limit() -> None:
    assert [pause_s(n) for n in (0, 1, 2, 3, 4, 100)] == [0, 0, 0.5, 1, 2, 30]


def test_a_port_of_another_gateway_is_in_use() -> None:
    with listening_sockets("localhost", 2) as sockets:
        port = sockets[0][0].getsockname()[1]
        assert {one.getsockname()[1] for slot in sockets for one in slot} == {port}
        with pytest.raises(OSError, match="in use"):
            listen("localhost", port, 2)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--workers", "0"], "WEB_CONCURRENCY must be a whole number from 1 to 256."),
        (["--workers", "two"], "WEB_CONCURRENCY must be a whole number from 1 to 256."),
        (["--workers", "2", "--reload"], "--reload supports only one worker"),
        (["--workers", "2"], "no SO_REUSEPORT"),
    ],
)
def test_impossible_flags_are_one_line(
    flags: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(workers, "can_share_a_port", lambda: False)
    assert main(["serve", *flags]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


def test_a_port_in_use_is_reported(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(log, "configure", lambda *_: None)
    with listening_sockets("127.0.0.1", 1) as ((used,),):
        port = str(used.getsockname()[1])
        assert main(["serve", "--port", port, "--workers", "2"]) == 1
        assert f"cannot listen on 127.0.0.1:{port}: address already in use\n" in caplog.text
        assert main(["mock", "--port", port]) == 2
        assert capsys.readouterr().err == "nexus-gateway: cannot listen: address already in use.\n"
