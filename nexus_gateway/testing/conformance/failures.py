"""The tests in which the backend, the network or the caller fails."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import replace

import pytest

from nexus_gateway.routing.breaker import State
from nexus_gateway.testing.conformance.conversations import KEYS, read_stream
from nexus_gateway.testing.conformance.suite import WireSuite, both
from nexus_gateway.testing.gateway import HELLO
from nexus_gateway.testing.reply import Reply

FIRST_TOKEN_MS = 300


class FailureSuite(WireSuite):
    """The gateway's handling of failures, as far as it depends on the provider."""

    @both
    async def test_rejection_reaches_the_caller(self, stream: bool) -> None:
        """A 400 is returned as it is after one attempt, and does not count as a failure."""
        rejection = Reply(status=400, error={"message": "No such thing.", "type": "odd"})
        async with self._behind(rejection, count=2) as (served, upstream):
            status, text, _ = await served.chat(stream=stream)
            assert upstream.hits() == 1
            assert {i.breaker.state() for i in served.instances} == {State.CLOSED}
        assert status == 400
        assert json.loads(text)["error"]["message"] == "No such thing."

    @both
    @pytest.mark.parametrize("status", [401, 429, 500])
    async def test_failure_fails_over(self, status: int, stream: bool) -> None:
        """Another key answers, and the caller sees no error."""
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
    async def test_rate_limit(self, headers: Mapping[str, str]) -> None:
        """The key is not used for the requested time, and its circuit stays closed."""
        async with self._behind(Reply(status=429, headers=headers)) as (served, upstream):
            status, _, response_headers = await served.chat()
            assert status == 429, "a rate limit must not look like a failure"
            assert response_headers["Retry-After"] == "7"
            assert (await served.chat())[0] == 429
            assert upstream.hits() == 1
            assert served.instances[0].breaker.state() is State.CLOSED
            assert served.instances[0].park_reason() == "rate_limited"

    async def test_rejected_key(self) -> None:
        """A rejected key is not tried again, and the caller never sees a 401."""
        async with self._behind(Reply(status=401)) as (served, upstream):
            assert (await served.chat())[0] == 503
            assert (await served.chat())[0] == 503
            assert upstream.hits() == 1
            assert served.instances[0].park_reason() == "bad_key"

    @pytest.mark.parametrize(
        "failure",
        [Reply(reset=True), Reply(hang=True), Reply(error_after=0), Reply(end_after=0)],
        ids=["reset", "hang", "error", "empty"],
    )
    async def test_failure_before_the_first_content(self, failure: Reply) -> None:
        """A stream that fails before its first content fails over."""
        limit = {"first_token_timeout_ms": FIRST_TOKEN_MS} if failure.hang else {}
        async with self._behind(failure, count=2, **limit) as (served, upstream):
            status, text, _ = await served.chat()
        assert (status, read_stream(text).text) == (200, Reply().text)
        assert upstream.hits() == 2

    @pytest.mark.parametrize(
        "failure",
        [Reply(cut_after=3), Reply(end_after=3), Reply(error_after=3), Reply(hang_after=3)],
        ids=["cut", "end", "error", "hang"],
    )
    async def test_broken_stream_ends_with_an_error(self, failure: Reply) -> None:
        """It has an error event and no `[DONE]`: it is never silently truncated."""
        slow = replace(failure, delay_s=0.01)
        async with self._behind(slow, count=2, idle_timeout_ms=200) as (served, upstream):
            status, text, _ = await served.chat()
        assert status == 200
        assert '"error"' in text
        assert "[DONE]" not in text
        assert upstream.hits() == 1

    @both
    async def test_caller_disconnects(self, stream: bool) -> None:
        """The connection to the backend is closed, which does not count as a failure."""
        endless = Reply(text="word " * 1000, delay_s=0.02, head_delay_s=0 if stream else 30)
        async with self._behind(endless) as (served, upstream):
            started = asyncio.Event()

            async def ask() -> None:
                url, body = served.url + "/v1/chat/completions", {**HELLO, "stream": stream}
                async with served.session.post(url, json=body) as response:
                    started.set()
                    await response.read()

            asking = asyncio.create_task(ask())
            await _until(lambda: started.is_set() if stream else upstream.hits() == 1)
            asking.cancel()
            await asyncio.wait([asking])
            assert await upstream.requests[0].gone()
            assert served.instances[0].breaker.state() is State.CLOSED
            await _until(lambda: served.instances[0].in_flight == 0)

    async def test_key_is_never_exposed(self, caplog: pytest.LogCaptureFixture) -> None:
        """Not in an answer, an error, a header, `/health` or the log, whatever fails."""
        caplog.set_level(logging.DEBUG)
        echo = {"message": f"Incorrect API key provided: {KEYS[0]}"}
        failures = [Reply(status=s, error=echo) for s in (400, 500, 404, 429, 401)]
        output: list[str] = []
        async with self._behind(*failures, Reply()) as (served, _):
            for _ in range(len(failures) + 1):
                _, text, headers = await served.chat()
                output += [text, str(headers)]
            output.append(json.dumps(await served.health()))
        assert KEYS[0] not in "\n".join([*output, caplog.text])


async def _until(done: Callable[[], bool], within_s: float = 2.0) -> None:
    end_s = time.monotonic() + within_s
    while not done() and time.monotonic() < end_s:  # noqa: ASYNC110 - there is no event
        await asyncio.sleep(0.01)
    assert done()
