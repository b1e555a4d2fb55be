"""Large bodies: how many are taken at once, what is refused, and that nobody waits for them."""

from __future__ import annotations

import asyncio
import json
import logging
import resource
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from endpoints import BODIES, Able
from fakes import HELLO, KEYS, make_instance, serving
from processes import process
from raw import connected
from waiting import until

from nexus_gateway.dialects import body as limits
from nexus_gateway.settings import Settings
from nexus_gateway.testing.upstream import FakeUpstream
from nexus_gateway.upstream import large
from nexus_gateway.web import bodies
from nexus_gateway.web.bodies import COPIES, LEAST, MB, BodyBudget, memory_limit

LONG = "x" * (3 * large.LARGE)  # more than may come with the head
HEAD = b"POST %b HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"


def padded(path: str) -> dict[str, Any]:
    return {**BODIES[path], "metadata": {"a": LONG}}


@pytest.mark.proves("F31")
@pytest.mark.parametrize("path", BODIES)
async def test_a_large_body_is_served_and_gives_its_room_back(
    upstream: FakeUpstream, path: str
) -> None:
    async with serving(make_instance(upstream, provider=Able)) as served:
        budget = served.gateway.bodies
        for stream in (False, True) if path != "/v1/embeddings" else (False,):
            status, _, _ = await served.post(path, {**padded(path), "stream": stream})
            assert (status, budget.taken) == (200, 0)


@pytest.mark.proves("F31", "F73")
@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize("declared", [True, False], ids=["declared", "chunked"])
async def test_bodies_beyond_the_budget_are_refused(
    upstream: FakeUpstream, path: str, declared: bool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    data = json.dumps(padded(path)).encode()
    async with serving(make_instance(upstream, provider=Able), body_budget_mb=1) as served:
        budget = served.gateway.bodies
        async with connected(served) as (_, first):
            # One is always taken; it has begun to arrive.
            first.write(HEAD % path.encode() + b"Content-Length: %d\r\n\r\n{" % len(data))
            await until(lambda: budget.taken)
            assert budget.taken == COPIES * len(data)
            for _ in range(2):
                async with connected(served) as (reader, writer):
                    if declared:  # refused by its head
                        writer.write(
                            HEAD % path.encode() + b"Content-Length: %d\r\n\r\n" % len(data)
                        )
                    else:
                        writer.write(HEAD % path.encode() + b"Transfer-Encoding: chunked\r\n\r\n")
                        writer.write(b"%x\r\n%b\r\n0\r\n\r\n" % (len(data), data))
                    head = (await reader.readuntil(b"\r\n\r\n")).decode()
                    length = int(head.partition("Content-Length: ")[2].split()[0])
                    error = json.loads(await reader.readexactly(length))["error"]
                assert head.startswith("HTTP/1.1 503 ")
                assert "\r\nRetry-After: 1\r\n" in head
                assert error["code"] == "bodies_overloaded"
                if path == "/v1/messages":
                    assert error["type"] == "overloaded_error"
            status, _, _ = await served.post(path, BODIES[path])  # a small one has room
            assert status == 200
        await until(lambda: not budget.taken)
        assert (await served.post(path, padded(path)))[0] == 200
    assert [r.message.count("BODY_BUDGET_MB") for r in caplog.records].count(1) == 1


async def test_no_body_is_asked_for_that_would_be_refused(upstream: FakeUpstream) -> None:
    async with serving(make_instance(upstream), body_budget_mb=1) as served:
        served.gateway.bodies.taken = MB
        async with connected(served) as (reader, writer):
            lines = b"Expect: 100-continue\r\nContent-Length: %d\r\n\r\n" % len(LONG)
            writer.write(HEAD % b"/v1/chat/completions" + lines)
            assert (await reader.readline()).startswith(b"HTTP/1.1 503 ")


def names(count: int) -> dict[str, Any]:
    return {f"n{n}": 1 for n in range(count)}


def quoted(count: int) -> list[str]:
    return ["\\"] * count


WIDE: dict[str, Callable[[int], Any]] = {"names": names, "texts": quoted}


@pytest.mark.proves("F31", "S-14", "F74")
@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize("make", WIDE.values(), ids=WIDE)
async def test_too_many_names_and_texts_are_refused_unparsed(
    upstream: FakeUpstream, path: str, make: Callable[[int], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits.json_codec, "loads_exact", None)
    async with serving(make_instance(upstream, provider=Able)) as served:
        body = {**BODIES[path], "metadata": make(2 * limits.MAX_STRINGS)}
        status, text, _ = await served.post(path, body)
    assert (status, upstream.hits()) == (400, 0)
    assert "names and texts" in json.loads(text)["error"]["message"]


@pytest.mark.proves("F31", "S-14")
@pytest.mark.parametrize("value", [b"1", b"1.5", b"null"])
async def test_too_many_values_are_refused(upstream: FakeUpstream, value: bytes) -> None:
    data = b'{"messages":[],"a":[%b]}' % b",".join([value] * (limits.MAX_VALUES + 1))
    async with serving(make_instance(upstream)) as served:
        status, body, _ = await served.chat(data)
    assert status == 400
    assert "more than" in json.loads(body)["error"]["message"]


async def test_json_in_a_text_counts_as_one_text(upstream: FakeUpstream) -> None:
    text = json.dumps([{"a": "b"}] * 40_000)  # 160,000 quoted names and texts
    async with serving(make_instance(upstream)) as served:
        body = {**HELLO, "messages": [{"role": "user", "content": text}]}
        assert (await served.post("/v1/chat/completions", body))[0] == 200
    assert upstream.requests[0].body["messages"][0]["content"] == text


@pytest.mark.proves("F31", "F74")
@pytest.mark.parametrize("path", BODIES)
async def test_the_event_loop_parses_and_encodes_no_large_body(
    upstream: FakeUpstream, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads = set()

    def noting(function: Callable[..., Any]) -> Callable[..., Any]:
        def noted(data: Any, *more: Any) -> Any:
            if len(data if isinstance(data, bytes) else repr(data)) > large.LARGE:
                threads.add(threading.current_thread())
            return function(data, *more)

        return noted

    for name in ("loads_exact", "dumps"):
        monkeypatch.setattr(limits.json_codec, name, noting(getattr(limits.json_codec, name)))
    async with serving(make_instance(upstream, provider=Able)) as served:
        assert (await served.post(path, padded(path)))[0] == 200
    threads.discard(threading.current_thread())  # of the fake upstream and of this test
    assert len(threads) == 1


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": "5000"}, 5000),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": "max"}, None),
        (
            {
                "proc/self/cgroup": "0::/a/b\n",
                "sys/fs/cgroup/a/b/memory.max": "max",
                "sys/fs/cgroup/a/memory.max": "4000",
                "sys/fs/cgroup/memory.max": "9000",
            },
            4000,
        ),
        (
            {
                "proc/self/cgroup": "3:cpu,cpuacct:/x\n2:memory:/docker/1\n",
                "sys/fs/cgroup/memory/memory.limit_in_bytes": "6000",
            },
            6000,
        ),
        ({"proc/self/cgroup": "2:memory:/\n0::/\n"}, None),
        ({}, None),
    ],
    ids=["v2", "v2 without a limit", "v2 of a parent", "v1", "no files", "no cgroups"],
)
def test_the_limit_is_that_of_the_cgroup(
    tmp_path: Path, files: dict[str, str], expected: int | None
) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert memory_limit(tmp_path) == (expected or memory_limit(tmp_path / "none"))


def test_the_default_is_a_share_of_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies, "memory_limit", lambda: 4096 * MB)
    assert BodyBudget(Settings()).most == 2048 * MB
    assert BodyBudget(Settings(web_concurrency=4)).most == 512 * MB
    assert BodyBudget(Settings(web_concurrency=100)).most == LEAST == 256 * MB
    assert BodyBudget(Settings(body_budget_mb=7)).most == 7 * MB


def pieces(data: bytes) -> Iterator[bytes]:
    for at in range(0, len(data), MB):
        yield data[at : at + MB]


@pytest.mark.proves("F31", "F73")
@pytest.mark.skipif(sys.platform != "linux", reason="limits of a running process")
async def test_many_huge_bodies_neither_end_nor_stop_the_gateway(
    upstream: FakeUpstream, tmp_path: Path
) -> None:
    """A process that may use 1.2 GB of addresses answers each caller, and goes on."""
    text = b"x" * (19 * MB)
    data = b'{"messages":[{"role":"user","content":"Hi"}],"metadata":{"a":"%b"}}' % text
    env = {"GROQ_KEY_1": KEYS[0], "GROQ_BASE_URL": upstream.base_url}
    before = resource.getrlimit(resource.RLIMIT_AS)
    async with process(tmp_path, BODY_BUDGET_MB="600", **env) as gateway:
        resource.prlimit(gateway.process.pid, resource.RLIMIT_AS, (1200 * MB, before[1]))
        async with aiohttp.ClientSession() as session:

            async def chat() -> int:
                sent = session.post(gateway.url + "/v1/chat/completions", data=send())
                async with sent as response:
                    assert response.status == 200 or response.headers["Retry-After"]
                    return response.status

            async def send() -> Any:
                for piece in pieces(data):
                    yield piece

            statuses = await asyncio.gather(*(chat() for _ in range(12)))
            assert set(statuses) <= {200, 503}
            assert 200 in statuses
            async with session.get(gateway.url + "/health/live") as response:
                assert response.status == 200
