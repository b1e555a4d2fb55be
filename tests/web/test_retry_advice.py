"""What a request without an answer tells its caller to wait for, and what official clients do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from clock import FakeClock
from fakes import Other, Served, make_instance, serving
from official import anthropic, openai

from nexus_gateway.testing.reply import Reply
from nexus_gateway.testing.upstream import FakeUpstream

NOTHING_LISTENS = "http://127.0.0.1:9"
IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}
SHOWN = {
    "/v1/chat/completions": IMAGE,
    "/v1/messages": {"type": "image", "source": {"type": "url", "url": "https://example.org/a"}},
}
LIMITED = {
    wait: Reply(status=429, headers={"Retry-After": wait} if wait else {})
    for wait in ("", "7", "600")
}
GONE = Reply(status=404, error={"message": "The model `fake-large` does not exist."})


def two_keys(upstream: FakeUpstream, clock: FakeClock) -> list[Any]:
    return [make_instance(upstream, 1, clock), make_instance(upstream, 2, clock)]


def one_key(upstream: FakeUpstream, clock: FakeClock) -> list[Any]:
    return [make_instance(upstream, 1, clock)]


def no_address(upstream: FakeUpstream, clock: FakeClock) -> list[Any]:
    return [make_instance(NOTHING_LISTENS, 1, clock)]


def blind(upstream: FakeUpstream, clock: FakeClock) -> list[Any]:
    return [make_instance(upstream, 1, clock, provider=Other)]


def off(upstream: FakeUpstream, clock: FakeClock) -> list[Any]:
    (instance,) = one_key(upstream, clock)
    instance.disable()
    return [instance]


def parked(upstream: FakeUpstream, clock: FakeClock) -> list[Any]:
    instances = two_keys(upstream, clock)
    for instance in instances:
        instance.park_bad_key()
    return instances


# By the row of the table in docs/api.md: the instances, what they answer, how many requests came
# before; the status, the time to wait and whether a client tries again.
Row = tuple[Callable[..., list[Any]], Reply, int, int, str | None, bool]
ROWS: dict[str, Row] = {
    "keys are refused": (two_keys, Reply(status=401), 0, 503, None, False),
    "keys are parked": (parked, Reply(), 0, 503, None, False),
    "no credit": (two_keys, Reply(status=402), 0, 402, None, False),
    "forbidden": (two_keys, Reply(status=403), 0, 403, None, False),
    "limited": (two_keys, LIMITED["7"], 0, 429, "7", True),
    "still limited": (two_keys, LIMITED["7"], 1, 429, "7", True),
    "limited without a time": (two_keys, LIMITED[""], 0, 429, "10", True),
    "limited for long": (two_keys, LIMITED["600"], 0, 429, "600", False),
    "all fail": (two_keys, Reply(status=500), 0, 503, "1", True),
    "the only one fails": (one_key, Reply(status=500), 0, 503, "1", True),
    "the only one has failed": (one_key, Reply(status=500), 2, 503, "1", True),
    "one that asks for a pause": (
        *(one_key, Reply(status=503, headers={"Retry-After": "20"})),
        *(0, 503, "20", True),
    ),
    "a circuit opens": (no_address, Reply(), 0, 503, "1", True),
    "a circuit is open": (no_address, Reply(), 2, 503, "2", True),
    "a model is gone": (two_keys, GONE, 0, 503, None, False),
    "no model takes it": (blind, Reply(), 0, 400, None, False),
    "all are off": (off, Reply(), 0, 503, None, False),
    "the request is wrong": (two_keys, Reply(status=400), 0, 400, None, False),
}


async def ask(
    served: Served, path: str, retries: int, monkeypatch: pytest.MonkeyPatch, content: Any
) -> tuple[Any, list[str | None]]:
    """Ask by the official client; return its error, and what it waited for before it retried."""
    waits: list[str | None] = []

    async def wait(*, response: Any, **more: Any) -> None:
        waits.append(response.headers.get("retry-after"))

    library = anthropic if path == "/v1/messages" else openai
    url = served.url if library is anthropic else served.url + "/v1"
    kind = library.AsyncAnthropic if library is anthropic else library.AsyncOpenAI
    async with kind(base_url=url, api_key="caller", max_retries=retries) as client:
        monkeypatch.setattr(client, "_sleep_for_retry", wait)
        create = client.messages if library is anthropic else client.chat.completions
        with pytest.raises(library.APIStatusError) as raised:
            await create.create(
                model="auto", max_tokens=9, messages=[{"role": "user", "content": content}]
            )
    return raised.value, waits


@pytest.mark.proves("F02", "F05", "I-22", "I-24")
@pytest.mark.parametrize("path", SHOWN)
@pytest.mark.parametrize("row", ROWS)
async def test_clients_wait_as_long_as_the_gateway_and_only_if_that_may_help(
    upstream: FakeUpstream, monkeypatch: pytest.MonkeyPatch, path: str, row: str
) -> None:
    instances, upstream.default, before, status, wait, retries = ROWS[row]
    clock = FakeClock()
    content = [SHOWN[path]] if instances is blind else "Hi"
    async with serving(*instances(upstream, clock), clock=clock) as served:
        for _ in range(before):
            await served.chat()
        error, _ = await ask(served, path, 0, monkeypatch, content)
        headers = error.response.headers
        assert (error.status_code, headers.get("retry-after")) == (status, wait)
        told = {None: None, "true": True, "false": False}[headers.get("x-should-retry")]
        assert told is retries or (told is None and status < 429)
        _, waits = await ask(served, path, 1, monkeypatch, content)
    assert len(waits) == retries
