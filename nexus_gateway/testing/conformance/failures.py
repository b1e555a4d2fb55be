"""The part of the suite in which the backend, the network or the caller fails."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Callable, Mapping

import pytest

from nexus_gateway.routing.breaker import State
from nexus_gateway.testing.conformance.conversations import KEYS, read_stream
from nexus_gateway.testing.conformance.suite import WireSuite, both
from nexus_gateway.testing.gateway import HELLO
from nexus_gateway.testing.reply import Reply

FIRST_TOKEN_MS = 300


class FailureSuite(WireSuite):
    """Each row of the gateway's table of failures, as far as a provider can spoil it."""

    @both
    async def test_a_refusal_goes_to_the_caller(self, stream: bool) -> None:
        """400 is the caller's fault: told as it is, tried once, the instance unharmed."""
        refusal = Reply(status=400, error={"message": "No such thing.", "type": "odd"})
        async with self._behind(refusal, count=2) as (served, upstream):
            status, text, _ = await served.chat(stream=stream)
            assert upstream.hits() == 1
            assert {i.breaker.state() for i in served.instances} == {State.CLOSED}
        assert status == 400
        assert json.loads(text)["error"]["message"] == "No such thing."

    @both
    @pytest.mark.parametrize("status", [401, 429, 500])
    async def test_a_failure_is_mended_by_another_key(self, status: int, stream: bool) -> None:
        """The caller does not notice."""
        async with self._behind(Reply(status=status), count=2) as (served, upstream):
            status, text, headers = await served.chat(stream=stream)
        assert status == 200, text
        assert headers["X-Nexus-Attempts"] == "2"
        assert upstream.hits() == 2

    @pytest.mark.parametrize(
        "headers",
        [{"Retry-After": "7"}, {"retry-after-ms": "7000"}, {"x-ratelimit-reset-requests": "7s"}],
        ids=lambda headers: next(iter(headers)),
    )
    async def test_a_rate_limit_is_kept(self, headers: Mapping[str, str]) -> None:
        """The key rests as long as the backend asks, and its circuit stays closed."""
        async with self._behind(Reply(status=429, headers=headers)) as (served, upstream):
            status, _, answered = await served.chat()
            assert status == 429, "a rate limit must be told from a failure"
            assert answered["Retry-After"] == "7"
            assert (await served.chat())[0] == 429
            assert upstream.hits() == 1
            assert served.instances[0].breaker.state() is State.CLOSED
            assert served.instances[0].park_reason() == "rate_limited"

    async def test_a_bad_key_rests(self) -> None:
        """A key that is refused is not tried again, and the caller never sees a 401."""
        async with self._behind(Reply(status=401)) as (served, upstream):
            assert (await served.chat())[0] == 503
            assert (await served.chat())[0] == 503
            assert upstream.hits() == 1
            assert served.instances[0].park_reason() == "bad_key"

    @pytest.mark.parametrize(
        "trouble",
        [Reply(reset=True), Reply(hang=True), Reply(error_after=0), Reply(end_after=0)],
        ids=["reset", "hang", "error", "empty"],
    )
    async def test_trouble_before_the_first_word_is_mended(self, trouble: Reply) -> None:
        """A stream that fails before it says anything fails over."""
        limit = {"first_token_timeout_ms": FIRST_TOKEN_MS} if trouble.hang else {}
        async with self._behind(trouble, count=2, **limit) as (served, upstream):
            status, text, _ = await served.chat()
        assert (status, read_stream(text).text) == (200, Reply().text)
        assert upstream.hits() == 2

    @pytest.mark.parametrize(
        "trouble",
        [Reply(cut_after=3), Reply(end_after=3), Reply(error_after=3), Reply(hang_after=3)],
        ids=["cut", "end", "error", "hang"],
    )
    async def test_a_stream_that_breaks_says_so(self, trouble: Reply) -> None:
        """It ends with an error event and without `[DONE]`: never silently short."""
        slow = Reply(**{**vars(trouble), "delay_s": 0.01})
        async with self._behind(slow, count=2, idle_timeout_ms=200) as (served, upstream):
            status, text, _ = await served.chat()
        assert status == 200
        assert '"error"' in text
        assert "[DONE]" not in text
        assert upstream.hits() == 1

    @both
    async def test_a_caller_who_leaves_ends_it(self, stream: bool) -> None:
        """The backend's connection is closed, and nobody is blamed."""
        endless = Reply(text="word " * 1000, delay_s=0.02, head_delay_s=0 if stream else 30)
        async with self._behind(endless) as (served, upstream):
            begun = asyncio.Event()

            async def ask() -> None:
                url, body = served.url + "/v1/chat/completions", {**HELLO, "stream": stream}
                async with served.session.post(url, json=body) as response:
                    begun.set()
                    await response.read()

            asking = asyncio.create_task(ask())
            await _until(lambda: begun.is_set() if stream else upstream.hits() == 1)
            asking.cancel()
            await asyncio.wait([asking])
            assert await upstream.requests[0].gone()
            assert served.instances[0].breaker.state() is State.CLOSED
            await _until(lambda: served.instances[0].in_flight == 0)

    async def test_no_key_is_told(self, caplog: pytest.LogCaptureFixture) -> None:
        """Not in an answer, an error, a header, `/health` or the log, whatever goes wrong."""
        caplog.set_level(logging.DEBUG)
        echo = {"message": f"Incorrect API key provided: {KEYS[0]}"}
        troubles = [Reply(status=s, error=echo) for s in (400, 500, 404, 429, 401)]
        said: list[str] = []
        async with self._behind(*troubles, Reply()) as (served, _):
            for _ in range(len(troubles) + 1):
                _, text, headers = await served.chat()
                said += [text, str(headers)]
            said.append(json.dumps(await served.health()))
        assert KEYS[0] not in "\n".join([*said, caplog.text])


async def _until(done: Callable[[], bool], within_s: float = 2.0) -> None:
    end_s = time.monotonic() + within_s
    while not done() and time.monotonic() < end_s:  # noqa: ASYNC110 - nothing tells of it
        await asyncio.sleep(0.01)
    assert done()
