"""Host names whose servers do not answer."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from fakes import Fake, make_instance, serving
from waiting import until

from nexus_gateway.secret import Secret
from nexus_gateway.testing import FakeUpstream
from nexus_gateway.upstream import dns

LOCAL = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", 0))]


class NameServer:
    """Stands in for getaddrinfo: names of the domain `silent` are not answered before the end."""

    def __init__(self) -> None:
        self.asked: Counter[str] = Counter()
        self.lost: set[str] = set()
        self.end = threading.Event()

    def __call__(self, host: str, *args: Any, **more: Any) -> list[Any]:
        self.asked[host] += 1
        if host.endswith(".silent"):
            self.end.wait()
        if host in self.lost or host.endswith(".silent"):
            raise socket.gaierror(socket.EAI_AGAIN, "try again")
        return LOCAL


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> Iterator[NameServer]:
    server = NameServer()
    monkeypatch.setattr(socket, "getaddrinfo", server)
    yield server
    server.end.set()


class Clock:
    """Replaces the time of a resolver's loop."""

    def __init__(self, resolver: dns.Resolver) -> None:
        self.now, loop = 1000.0, resolver._loop
        self.create_future, self.call_soon_threadsafe = (
            loop.create_future,
            loop.call_soon_threadsafe,
        )
        resolver._loop = self  # type: ignore[assignment]

    def time(self) -> float:
        return self.now


def named(upstream: FakeUpstream, host: str) -> str:
    return upstream.base_url.replace("127.0.0.1", host)


@pytest.mark.proves("F67")
@pytest.mark.usefixtures("each_way")
async def test_eight_names_without_an_answer_do_not_delay_another(
    names: NameServer, upstream: FakeUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dns, "LOOKUP_S", 600.0)
    dead = [make_instance(f"http://n{n}.silent/v1", name=f"dead{n}") for n in range(8)]
    good = make_instance(named(upstream, "good.example"), provider=Fake, name="good")
    async with serving(*dead, good) as served:
        waiting = [
            asyncio.create_task(served.post("/v1/chat/completions", body(f"dead{n}")))
            for n in range(8)
        ]
        await until(lambda: len(names.asked) == 8)  # all eight are stuck
        for _ in range(2):
            status, _, _ = await served.post("/v1/chat/completions", body("good"))
            assert status == 200
        # The default threads of the event loop are free as well.
        assert await asyncio.to_thread(int, "1") == 1
        assert not any(task.done() for task in waiting)
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)


def body(model: str) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": "Hi"}], "stream": False}


async def test_a_name_without_an_answer_fails_over_in_time(
    names: NameServer, upstream: FakeUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dns, "LOOKUP_S", 0.01)
    dead = make_instance("http://n.silent/v1")
    async with serving(dead, make_instance(upstream, 2)) as served:
        status, _, headers = await served.chat(headers={"X-Routing-Mode": "round-robin"})
        assert (status, headers["X-Nexus-Attempts"]) == (200, "2")
    assert dead.default.last_reason == "its host name was not found"


async def test_the_name_of_a_proxy_is_looked_up_in_the_same_way(
    names: NameServer, upstream: FakeUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dns, "LOOKUP_S", 600.0)
    behind = make_instance("http://upstream.example/v1", name="behind")
    good = make_instance(upstream, name="good")  # on loopback, so without the proxy
    proxy = Secret("http://proxy.silent:3128")
    async with serving(behind, good, upstream_proxy=proxy) as served:
        waiting = asyncio.create_task(served.post("/v1/chat/completions", body("behind")))
        await until(lambda: names.asked["proxy.silent"])
        assert (await served.post("/v1/chat/completions", body("good")))[0] == 200
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)


async def test_a_name_has_one_lookup_at_a_time(
    names: NameServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dns, "LOOKUP_S", 600.0)
    resolver = dns.Resolver()
    asking = [asyncio.create_task(resolver.resolve("a.silent", 443)) for _ in range(9)]
    asking += [asyncio.create_task(resolver.resolve("b", 443)) for _ in range(9)]
    await until(lambda: all(task.done() for task in asking[9:]))
    assert names.asked == {"a.silent": 1, "b": 1}
    asking[0].cancel()  # one that leaves does not end it for the others
    names.end.set()
    for task in asking[1:9]:
        with pytest.raises(OSError, match="try again"):
            await task


async def test_a_name_whose_lookup_is_overdue_fails_at_once(names: NameServer) -> None:
    resolver = dns.Resolver()
    clock = Clock(resolver)
    asking = asyncio.create_task(resolver.resolve("a.silent"))
    await until(lambda: names.asked)
    clock.now += dns.LOOKUP_S
    with pytest.raises(OSError, match="too long"):
        await resolver.resolve("a.silent")
    assert names.asked == {"a.silent": 1}
    asking.cancel()


@pytest.mark.proves("F67")
async def test_addresses_are_served_for_an_hour_and_looked_up_again_meanwhile(
    names: NameServer,
) -> None:
    resolver = dns.Resolver()
    clock = Clock(resolver)
    first = await resolver.resolve("a", 443)
    assert [(at["host"], at["port"]) for at in first] == [("127.0.0.1", 443)]
    await resolver.resolve("a", 443)
    assert names.asked["a"] == 1
    names.lost.add("a")
    for turn in range(2, 60):  # the name server fails: the old addresses go on
        clock.now += dns.FRESH_S
        assert await resolver.resolve("a", 443) == first
        await until(lambda turn=turn: names.asked["a"] == turn and not resolver._lookups)
    clock.now += dns.STALE_S
    with pytest.raises(OSError, match="try again"):
        await resolver.resolve("a", 443)
    names.lost.clear()
    assert await resolver.resolve("a", 443) == first


async def test_lookups_and_names_are_bounded(
    names: NameServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dns, "MOST_LOOKUPS", 3)
    monkeypatch.setattr(dns, "MOST_NAMES", 3)
    monkeypatch.setattr(dns, "LOOKUP_S", 600.0)
    resolver = dns.Resolver()
    for n in range(9):
        await resolver.resolve(f"{n}")
    assert [name[0] for name in resolver._known] == ["6", "7", "8"]
    stuck = [asyncio.create_task(resolver.resolve(f"{n}.silent")) for n in range(3)]
    await until(lambda: len(resolver._lookups) == 3)
    with pytest.raises(OSError, match="too long"):
        await resolver.resolve("one-more")
    assert await resolver.resolve("8")
    for task in stuck:
        task.cancel()


async def test_without_a_thread_a_lookup_fails_and_the_next_one_may_succeed(
    names: NameServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_thread(*args: object, **how: object) -> None:
        raise RuntimeError("can't start new thread")

    resolver = dns.Resolver()
    with monkeypatch.context() as patch:
        patch.setattr(threading, "Thread", no_thread)
        with pytest.raises(OSError, match="too long"):
            await resolver.resolve("a")
    assert await resolver.resolve("a")
