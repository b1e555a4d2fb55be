"""One worker, with the test as its supervisor."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import signal
import socket
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
from fakes import HELLO, make_instance
from processes import listened
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


class Hired:
    """A worker of slot 0, and the supervisor's end of its line."""

    def __init__(self, line: ControlChannel, url: str, sockets: list[list[socket.socket]]) -> None:
        self.line = line
        self.url = url
        self.sockets = sockets
        self.heard: list[tuple[str, dict[str, Any]]] = []
        self.gateway: Gateway
        self.working: asyncio.Task[int]
        self.session: aiohttp.ClientSession

    async def hears(self, kind: str) -> dict[str, Any]:
        async with asyncio.timeout(30):
            async for heard, message in self.line.messages():
                self.heard.append((heard, message))
                if heard == kind:
                    return message
        raise AssertionError(kind)

    async def chat(self) -> tuple[int, str, str]:
        async with self.session.post(self.url + "/v1/chat/completions", json=HELLO) as answer:
            return answer.status, await answer.text(), answer.headers.get("Connection", "")

    async def ends(self) -> None:
        assert await asyncio.wait_for(self.working, 30) == 0


@pytest.fixture
async def hired(upstream: FakeUpstream) -> AsyncIterator[Hired]:
    with listened("127.0.0.1", 2) as sockets, contextlib.ExitStack() as closing:
        port = sockets[0][0].getsockname()[1]
        ours, theirs = socket.socketpair()
        # The worker has descriptors of its own, as it would have in another process.
        listening = [[os.dup(one.fileno()) for one in slot] for slot in sockets]
        for number in itertools.chain.from_iterable(listening):
            closing.callback(os.close, number)
        text = WorkerSpec(0, theirs.detach(), listening, "127.0.0.1", port, "ab" * 8).as_text()
        environ = {PLACE: text}
        place = workers.take_spec(environ)
        assert place is not None
        assert workers.take_spec(environ) is None
        app = build_app(Settings(shutdown_timeout_ms=300), Pool([make_instance(upstream)]))
        hired = Hired(await ControlChannel.open(ours), f"http://127.0.0.1:{port}", sockets)
        hired.working = asyncio.create_task(worker.work(app, place, {"screen": []}))
        hired.line.send("share", **NOTHING_NEW)
        async with aiohttp.ClientSession() as hired.session:
            assert (await hired.hears("ready"))["version"] == VERSION
            hired.gateway = app[GATEWAY]
            hired.line.send("listen", slots=[0, 1])  # nobody else is there
            yield hired
            await hired.line.close()
            await hired.ends()


@pytest.fixture
def brief(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "LINGER_S", 0.2)


async def opened(upstream: FakeUpstream) -> None:
    await until(lambda: upstream.open)


async def test_it_says_what_it_counts_and_heeds_what_others_say(hired: Hired) -> None:
    (instance,) = hired.gateway.pool.instances
    await hired.chat()
    said = WorkerState.from_json(await hired.hears("share"))
    assert [v for name, v in said.counts.items() if name.endswith(" requests")] == [1]
    others = WorkerState(
        {f"{instance.name} toggle": [instance._clock(), False]}, gauges={"requests_in_flight": 3}
    )
    hired.line.send("share", **others.as_json(), workers=5, shown=False)
    await until(lambda: not instance.enabled)
    async with hired.session.get(hired.url + "/health") as answer:
        health = await answer.json()
    assert (health["workers"], health["inFlightRequests"]) == (5, 3)


async def test_it_hands_over_its_requests_only_while_somebody_listens(hired: Hired) -> None:
    await hired.chat()
    first = RecentEvents.from_json(await hired.hears("news"))
    assert (len(first.requests), [len(ms) for ms in first.first_tokens_ms.values()]) == (0, [1])
    hired.line.send("share", **WorkerState(gauges={LISTENERS: 1}).as_json(), workers=2, shown=False)
    then = RecentEvents.from_json(await hired.hears("news"))
    assert ([r["status"] for r in then.requests], then.first_tokens_ms) == ([200], {})
    assert WorkerState.from_json(await hired.hears("share")).gauges[HANDING_OVER] == 1
    hired.line.send("share", **NOTHING_NEW)
    await hired.chat()
    assert RecentEvents.from_json(await hired.hears("news")).requests == []
    hired.line.send("drain")
    last_words = RecentEvents.from_json(await hired.hears("news"))
    assert [request["status"] for request in last_words.requests] == [200]


async def test_who_listens_waits_for_what_the_others_hand_over(
    hired: Hired, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "LONGEST_WAIT_S", 60)
    await hired.chat()
    (_, opened) = await asyncio.gather(listening(hired), hired.session.get(hired.url + EVENTS))
    theirs = {**request_json(ended(id="theirs")), "endedAt": 1}
    hired.line.send("news", requests=[theirs], first_tokens_ms={})
    hired.line.send("share", **WorkerState().as_json(), workers=2, shown=True)
    async with opened:
        first, second = (await snapshot(opened))["requests"]
    assert (first, second["status"]) == (theirs, 200)


async def test_who_listens_waits_for_nobody_who_hangs(
    hired: Hired, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "LONGEST_WAIT_S", 0.05)
    async with hired.session.get(hired.url + EVENTS) as opened:
        assert (await snapshot(opened))["requests"] == []
        await listening(hired)
    async with asyncio.timeout(30):
        while LISTENERS in WorkerState.from_json(await hired.hears("share")).gauges:
            pass


async def listening(hired: Hired) -> None:
    async with asyncio.timeout(30):
        while WorkerState.from_json(await hired.hears("share")).gauges.get(LISTENERS) != 1:
            pass


async def snapshot(opened: aiohttp.ClientResponse) -> dict[str, Any]:
    async with asyncio.timeout(30):
        while not (line := await opened.content.readline()).startswith(b"data: "):
            pass
    found: dict[str, Any] = json.loads(line[6:])
    return found


async def test_a_toggle_is_told_at_once(hired: Hired, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "PUBLISH_EVERY_S", 60)
    await hired.hears("share")  # the last one of the old rhythm
    (name,) = (instance.name for instance in hired.gateway.pool.instances)
    path = hired.url + "/v1/providers/toggle"
    async with hired.session.post(path, json={"name": name, "enabled": False}) as answer:
        assert answer.status == 200
    assert (await hired.hears("share"))["marks"][f"{name} toggle"][1] is False


async def test_replaced_it_answers_whoever_still_comes_and_ends_its_streams(
    hired: Hired, upstream: FakeUpstream, brief: None
) -> None:
    upstream.script(Reply(), Reply(text="a b c d e", delay_s=0.2))
    async with aiohttp.ClientSession() as idle:
        async with idle.get(hired.url + "/health/live") as answer:
            assert answer.headers.get("Connection") is None
        await hired.chat()
        stream = asyncio.create_task(hired.chat())
        await opened(upstream)
        hired.line.send("retire")
        await asyncio.wait_for(hired.gateway.drain.leaving.wait(), 30)
        async with idle.get(hired.url + "/health") as answer:
            assert (answer.status, answer.headers["Connection"]) == (200, "close")
        assert (await stream)[1].endswith("[DONE]\n\n")
        assert (await hired.chat())[::2] == (200, "close")
    await hired.ends()


async def test_replaced_it_has_a_limit(
    hired: Hired, upstream: FakeUpstream, brief: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "LONGEST_RETIREMENT_S", 0.3)
    upstream.default = Reply(hang_after=2)
    stream = asyncio.create_task(hired.chat())
    await opened(upstream)
    hired.line.send("retire")
    assert '"code":"shutting_down"' in (await stream)[1]
    await hired.ends()


async def test_replaced_it_still_drains_when_the_gateway_ends(
    hired: Hired, upstream: FakeUpstream
) -> None:
    upstream.default = Reply(hang_after=2)
    stream = asyncio.create_task(hired.chat())
    await opened(upstream)
    hired.line.send("retire")
    await asyncio.wait_for(hired.gateway.drain.leaving.wait(), 30)
    hired.line.send("drain")
    assert '"code":"shutting_down"' in (await stream)[1]
    await hired.ends()


async def test_a_signal_makes_it_ask_for_a_replacement(hired: Hired) -> None:
    os.kill(os.getpid(), signal.SIGINT)
    os.kill(os.getpid(), signal.SIGHUP)
    os.kill(os.getpid(), signal.SIGTERM)
    await hired.hears("leave")
    assert (await hired.chat())[0] == 200


async def test_it_accepts_for_an_absent_neighbour(hired: Hired) -> None:
    for slots in ([0], [0, 1]):
        hired.line.send("listen", slots=slots)
    for _ in range(8):  # some of them for either socket
        async with (
            aiohttp.ClientSession() as session,
            session.get(hired.url + "/health/live") as answer,
        ):
            assert answer.status == 200


async def test_what_is_wrong_is_said_before_there_is_a_loop() -> None:
    ours, theirs = socket.socketpair()
    WorkerSpec(0, theirs.detach(), [], "127.0.0.1", 0, "").refuse(("PORT must be a number.",))
    line = await ControlChannel.open(ours)
    heard = [message async for message in line.messages()]
    assert heard == [("refused", {"problems": ["PORT must be a number."]})]
    await line.close()


async def test_a_slow_reader_is_noticed_and_a_dead_one_is_no_error() -> None:
    ours, theirs = socket.socketpair()
    line = await ControlChannel.open(ours)
    assert line.is_clear
    line.send("share", filling="x" * 1_000_000)
    assert not line.is_clear
    theirs.close()
    assert [message async for message in line.messages()] == []
    line.send("share")
    await line.close()
