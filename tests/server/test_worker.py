"""One worker; the test acts as its supervisor."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
from fakes import HELLO, make_instance
from processes import listening_sockets
from records import ended
from waiting import until

from nexus_gateway.cli import workers
from nexus_gateway.routing.pool import Pool
from nexus_gateway.server import worker
from nexus_gateway.server.channel import PLACE, VERSION, ControlChannel, WorkerSpec
from nexus_gateway.server.sync import RecentEvents
from nexus_gateway.settings import Settings
from nexus_gateway.telemetry.shared import HANDING_OVER, LISTENERS, WorkerState
from nexus_gateway.telemetry.snapshot import request_json
from nexus_gateway.testing.reply import Reply
from nexus_gateway.testing.upstream import FakeUpstream
from nexus_gateway.web.app import build_app
from nexus_gateway.web.gateway import GATEWAY, Gateway
from nexus_gateway.web.handlers import events

EVENTS = "/v1/events"
NOTHING_NEW = {**WorkerState().as_json(), "workers": 2, "shown": False}


class SupervisedWorker:
    """A worker of slot 0, and the supervisor's end of its channel."""

    def __init__(
        self, channel: ControlChannel, url: str, sockets: list[list[socket.socket]]
    ) -> None:
        self.channel = channel
        self.url = url
        self.sockets = sockets
        self.gateway: Gateway
        self.working: asyncio.Task[int]
        self.session: aiohttp.ClientSession

    async def receive(self, kind: str) -> dict[str, Any]:
        async with asyncio.timeout(30):
            async for message_kind, message in self.channel.messages():
                if message_kind == kind:
                    return message
        raise AssertionError(kind)

    async def chat(self) -> tuple[int, str, str]:
        async with self.session.post(self.url + "/v1/chat/completions", json=HELLO) as answer:
            return answer.status, await answer.text(), answer.headers.get("Connection", "")

    async def stop(self) -> None:
        assert await asyncio.wait_for(self.working, 30) == 0


@pytest.fixture
async def supervised_worker(upstream: FakeUpstream) -> AsyncIterator[SupervisedWorker]:
    with listening_sockets("127.0.0.1", 2) as sockets:
        port = sockets[0][0].getsockname()[1]
        ours, theirs = socket.socketpair()
        # The worker has its own descriptors, as in another process.
        listening = [[os.dup(one.fileno()) for one in slot] for slot in sockets]
        text = WorkerSpec(0, theirs.detach(), listening, "127.0.0.1", port, "ab" * 8).as_text()
        environ = {PLACE: text}
        spec = workers.take_spec(environ)
        assert spec is not None
        assert workers.take_spec(environ) is None
        app = build_app(Settings(shutdown_timeout_ms=300), Pool([make_instance(upstream)]))
        supervised_worker = SupervisedWorker(
            await ControlChannel.open(ours), f"http://127.0.0.1:{port}", sockets
        )
        supervised_worker.working = asyncio.create_task(worker.work(app, spec, {"screen": []}))
        supervised_worker.channel.send("share", **NOTHING_NEW)
        async with aiohttp.ClientSession() as supervised_worker.session:
            assert (await supervised_worker.receive("ready"))["version"] == VERSION
            supervised_worker.gateway = app[GATEWAY]
            supervised_worker.channel.send("listen", slots=[0, 1])  # no other worker accepts
            yield supervised_worker
            await supervised_worker.channel.close()
            await supervised_worker.stop()


@pytest.fixture
def short_linger(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "LINGER_S", 0.2)


async def stream_opened(upstream: FakeUpstream) -> None:
    await until(lambda: upstream.open)


async def test_it_publishes_its_counts_and_applies_the_state_of_others(
    supervised_worker: SupervisedWorker,
) -> None:
    (instance,) = supervised_worker.gateway.pool.instances
    await supervised_worker.chat()
    state = WorkerState.from_json(await supervised_worker.receive("share"))
    assert [v for name, v in state.counts.items() if name.endswith(" requests")] == [1]
    others = WorkerState(
        {f"{instance.name} toggle": [instance._clock(), False]}, gauges={"requests_in_flight": 3}
    )
    supervised_worker.channel.send("share", **others.as_json(), workers=5, shown=False)
    await until(lambda: not instance.enabled)
    async with supervised_worker.session.get(supervised_worker.url + "/health") as answer:
        health = await answer.json()
    assert (health["workers"], health["inFlightRequests"]) == (5, 3)


async def test_it_sends_its_requests_only_while_a_page_listens(
    supervised_worker: SupervisedWorker,
) -> None:
    await supervised_worker.chat()
    first = RecentEvents.from_json(await supervised_worker.receive("news"))
    assert (len(first.requests), [len(ms) for ms in first.first_tokens_ms.values()]) == (0, [1])
    supervised_worker.channel.send(
        "share", **WorkerState(gauges={LISTENERS: 1}).as_json(), workers=2, shown=False
    )
    then = RecentEvents.from_json(await supervised_worker.receive("news"))
    assert ([r["status"] for r in then.requests], then.first_tokens_ms) == ([200], {})
    assert WorkerState.from_json(await supervised_worker.receive("share")).gauges[HANDING_OVER] == 1
    supervised_worker.channel.send("share", **NOTHING_NEW)
    await supervised_worker.chat()
    assert RecentEvents.from_json(await supervised_worker.receive("news")).requests == []
    supervised_worker.channel.send("drain")
    last_events = RecentEvents.from_json(await supervised_worker.receive("news"))
    assert [request["status"] for request in last_events.requests] == [200]


async def test_a_snapshot_waits_for_the_requests_of_other_workers(
    supervised_worker: SupervisedWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "LONGEST_WAIT_S", 60)
    await supervised_worker.chat()
    (_, response) = await asyncio.gather(
        listening(supervised_worker), supervised_worker.session.get(supervised_worker.url + EVENTS)
    )
    request = {**request_json(ended(id="theirs")), "endedAt": 1}
    supervised_worker.channel.send("news", requests=[request], first_tokens_ms={})
    supervised_worker.channel.send("share", **WorkerState().as_json(), workers=2, shown=True)
    async with response:
        first, second = (await snapshot(response))["requests"]
    assert (first, second["status"]) == (request, 200)


async def test_a_snapshot_does_not_wait_for_a_hanging_worker(
    supervised_worker: SupervisedWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "LONGEST_WAIT_S", 0.05)
    async with supervised_worker.session.get(supervised_worker.url + EVENTS) as response:
        assert (await snapshot(response))["requests"] == []
        await listening(supervised_worker)
    async with asyncio.timeout(30):
        while LISTENERS in WorkerState.from_json(await supervised_worker.receive("share")).gauges:
            pass


async def listening(supervised_worker: SupervisedWorker) -> None:
    async with asyncio.timeout(30):
        while (
            WorkerState.from_json(await supervised_worker.receive("share")).gauges.get(LISTENERS)
            != 1
        ):
            pass


async def snapshot(response: aiohttp.ClientResponse) -> dict[str, Any]:
    async with asyncio.timeout(30):
        while not (line := await response.content.readline()).startswith(b"data: "):
            pass
    data: dict[str, Any] = json.loads(line[6:])
    return data


async def test_a_toggle_is_published_at_once(
    supervised_worker: SupervisedWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "PUBLISH_EVERY_S", 60)
    await supervised_worker.receive("share")  # the last one at the old interval
    (name,) = (instance.name for instance in supervised_worker.gateway.pool.instances)
    path = supervised_worker.url + "/v1/providers/toggle"
    async with supervised_worker.session.post(
        path, json={"name": name, "enabled": False}
    ) as answer:
        assert answer.status == 200
    assert (await supervised_worker.receive("share"))["marks"][f"{name} toggle"][1] is False


async def test_a_retiring_worker_still_serves_and_finishes_its_streams(
    supervised_worker: SupervisedWorker, upstream: FakeUpstream, short_linger: None
) -> None:
    upstream.script(Reply(), Reply(text="a b c d e", delay_s=0.2))
    async with aiohttp.ClientSession() as idle:
        async with idle.get(supervised_worker.url + "/health/live") as answer:
            assert answer.headers.get("Connection") is None
        await supervised_worker.chat()
        stream = asyncio.create_task(supervised_worker.chat())
        await stream_opened(upstream)
        supervised_worker.channel.send("retire")
        await asyncio.wait_for(supervised_worker.gateway.drain.leaving.wait(), 30)
        async with idle.get(supervised_worker.url + "/health") as answer:
            assert (answer.status, answer.headers["Connection"]) == (200, "close")
        assert (await stream)[1].endswith("[DONE]\n\n")
        assert (await supervised_worker.chat())[::2] == (200, "close")
    await supervised_worker.stop()


async def test_retirement_has_a_time_limit(
    supervised_worker: SupervisedWorker,
    upstream: FakeUpstream,
    short_linger: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(worker, "LONGEST_RETIREMENT_S", 0.3)
    upstream.default = Reply(hang_after=2)
    stream = asyncio.create_task(supervised_worker.chat())
    await stream_opened(upstream)
    supervised_worker.channel.send("retire")
    assert '"code":"shutting_down"' in (await stream)[1]
    await supervised_worker.stop()


async def test_a_retiring_worker_still_drains_at_shutdown(
    supervised_worker: SupervisedWorker, upstream: FakeUpstream
) -> None:
    upstream.default = Reply(hang_after=2)
    stream = asyncio.create_task(supervised_worker.chat())
    await stream_opened(upstream)
    supervised_worker.channel.send("retire")
    await asyncio.wait_for(supervised_worker.gateway.drain.leaving.wait(), 30)
    supervised_worker.channel.send("drain")
    assert '"code":"shutting_down"' in (await stream)[1]
    await supervised_worker.stop()


async def test_a_signal_requests_a_replacement(supervised_worker: SupervisedWorker) -> None:
    os.kill(os.getpid(), signal.SIGINT)
    os.kill(os.getpid(), signal.SIGHUP)
    os.kill(os.getpid(), signal.SIGTERM)
    await supervised_worker.receive("leave")
    assert (await supervised_worker.chat())[0] == 200


async def test_it_accepts_connections_of_a_missing_worker(
    supervised_worker: SupervisedWorker,
) -> None:
    for slots in ([0], [0, 1]):
        supervised_worker.channel.send("listen", slots=slots)
    for _ in range(8):  # they reach both sockets
        async with (
            aiohttp.ClientSession() as session,
            session.get(supervised_worker.url + "/health/live") as answer,
        ):
            assert answer.status == 200


async def test_wrong_settings_are_reported_before_the_loop_runs() -> None:
    ours, theirs = socket.socketpair()
    WorkerSpec(0, theirs.detach(), [], "127.0.0.1", 0, "").refuse(("PORT must be a number.",))
    channel = await ControlChannel.open(ours)
    messages = [message async for message in channel.messages()]
    assert messages == [("refused", {"problems": ["PORT must be a number."]})]
    await channel.close()


async def test_a_slow_reader_is_detected_and_a_closed_one_is_no_error() -> None:
    ours, theirs = socket.socketpair()
    channel = await ControlChannel.open(ours)
    assert channel.is_clear
    channel.send("share", filling="x" * 1_000_000)
    assert not channel.is_clear
    theirs.close()
    assert [message async for message in channel.messages()] == []
    channel.send("share")
    await channel.close()
