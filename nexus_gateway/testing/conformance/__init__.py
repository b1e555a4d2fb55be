"""The suite that every provider must pass, over real sockets and through a real gateway.

Subclass it in a test module and set the provider; pytest collects the tests:

    from nexus_acme import Acme
    from nexus_gateway.testing.conformance import ProviderConformance


    class TestAcme(ProviderConformance):
        provider = Acme

For a provider with its own wire format, also set `wire`, the encoder of the fake upstream's answers
(the reverse of its translation), or recordings of the real service, or both. A provider that does
not use HTTP passes `InProcessConformance`. Needs pytest-asyncio (in the extra `testing`).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any, ClassVar

import pytest

from nexus_gateway.discovery import PROVIDERS
from nexus_gateway.provider import Answer, Call, InProcess, Provider, Translator, adapted
from nexus_gateway.routing.breaker import State
from nexus_gateway.routing.instance import Instance
from nexus_gateway.testing.conformance.conversations import (
    AFTER_A_CALL,
    CALL_ID,
    FOREIGN_CALL,
    FOREIGN_MARKS,
    FOREIGN_TALK,
    KEYS,
    LONG_TALK,
    PIXEL,
    TOOL,
    WITH_IMAGE,
    Completion,
    Recording,
    read_stream,
    read_whole,
)
from nexus_gateway.testing.gateway import HELLO, Served, instance_of, serving
from nexus_gateway.testing.reply import CITIES, Fate, Reply
from nexus_gateway.testing.upstream import FakeUpstream
from nexus_gateway.testing.wire import Received, Wire

__all__ = ["InProcessConformance", "ProviderConformance", "Recording"]

FIRST_TOKEN_MS = 50  # only an upstream that never answers is given so little
IN_TURN = {"X-Routing-Mode": "round-robin"}  # the first instance is asked first
RETIRED = {
    "400": Reply(
        status=400,
        error={"message": "The model has been decommissioned.", "code": "model_decommissioned"},
    ),
    "404": Reply(status=404),
}
TOO_LONG = {"message": "This model's maximum context length is 8192 tokens.", "code": 400}
TOO_LARGE = Reply(
    status=413,
    error={
        "message": "Request too large on tokens per minute: Limit 6000, Requested 7343",
        "type": "tokens",
        "code": "rate_limit_exceeded",
    },
)
PAGE = Reply(status=403, body=b"<html><h1>Blocked</h1></html>", content_type="text/html")
both = pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])


class Elsewhere(InProcess):
    """Another provider, which answers what the one under test does not."""

    title = "Elsewhere"
    default_model = "elsewhere-1"

    async def generate(self, call: Call, answer: Answer) -> AsyncIterator[dict[str, Any]]:
        yield answer.text("Hello from elsewhere.")
        yield answer.finish()


@pytest.mark.asyncio
class InProcessConformance:
    """The tests for every provider.

    Attributes:
        provider: the class under test.
        settings: fields of the gateway's `Settings` that differ from the defaults.
    """

    provider: ClassVar[type[Provider]]
    settings: ClassVar[Mapping[str, Any]] = {}

    @contextlib.asynccontextmanager
    async def _served(self, instances: list[Instance], **settings: Any) -> AsyncIterator[Served]:
        async with serving(*instances, **{**self.settings, **settings}) as served:
            yield served
        assert [i.in_flight for i in instances] == [0] * len(instances)

    @contextlib.asynccontextmanager
    async def _gateway(self) -> AsyncIterator[Served]:
        """Run a gateway with one instance of the provider."""
        async with self._served([instance_of(self.provider, key=KEYS[0])]) as served:
            yield served

    async def ask(self, served: Served, *, stream: bool = True, **fields: Any) -> Completion:
        """Send a chat completion and parse the answer, which must be a good one."""
        status, text, headers = await served.chat({**HELLO, "stream": stream, **fields})
        assert status == 200, text
        assert headers["X-Nexus-Provider"] == served.instances[0].name
        return read_stream(text) if stream else read_whole(text)

    async def test_class_follows_the_contract(self) -> None:
        """As checked when the gateway loads the plugin."""
        assert [*PROVIDERS.contract_errors(self.provider)] == []
        chat_models = [m.id for m in self.provider.models if m.kind == "chat"]
        if self.provider.default_model and chat_models:
            assert self.provider.default_model in chat_models, "`models` must contain it"
        assert self.provider.base_url.rstrip("/") == self.provider.base_url

    @both
    async def test_it_answers(self, stream: bool) -> None:
        """The answer has content, a finish_reason, and the instance's name as its model."""
        async with self._gateway() as served:
            answer = await self.ask(served, stream=stream)
        assert answer.text or answer.calls
        assert answer.finish
        assert answer.models == {served.instances[0].name}

    async def test_usage_chunk_only_on_request(self) -> None:
        """A stream has a usage chunk only if the request asks for it."""
        async with self._gateway() as served:
            requested = await self.ask(served, stream_options={"include_usage": True})
            other = await self.ask(served)
        assert requested.usage is None or requested.usage["total_tokens"] > 0
        assert not other.usage_alone

    async def test_turns_of_others(self) -> None:
        """A conversation may have begun elsewhere: fields that others need are no obstacle."""
        async with self._gateway() as served:
            await self.ask(served, messages=FOREIGN_TALK)

    async def test_concurrent_requests_do_not_mix(self) -> None:
        """One provider object serves all requests: keep state in local variables."""
        async with self._gateway() as served:
            first = await self.ask(served)
            many = await asyncio.gather(*(self.ask(served) for _ in range(8)))
        assert {answer.text for answer in many} == {first.text}


class ProviderConformance(InProcessConformance):
    """The tests for every provider that uses HTTP.

    Attributes:
        wire: creates the encoder of the fake upstream's answers; None: that of the official
            service at the path.
        recordings: recorded answers of the real service, by name.
        tools: whether the provider supports tools.
        images: whether it supports images if the model does.
    """

    wire: ClassVar[Callable[[], Wire] | None] = None
    recordings: ClassVar[Mapping[str, Recording]] = {}
    tools: ClassVar[bool] = True
    images: ClassVar[bool] = True

    @contextlib.asynccontextmanager
    async def _behind(
        self, *replies: Reply, count: int = 1, elsewhere: bool = False, **settings: Any
    ) -> AsyncIterator[tuple[Served, FakeUpstream]]:
        """Run a gateway with `count` instances in front of a fake upstream.

        With `elsewhere` the last instance is one of another provider.
        """
        async with FakeUpstream(type(self).wire) as upstream:
            upstream.script(*replies)
            instances = [self.instance(upstream, n + 1) for n in range(count)]
            if elsewhere:
                instances.append(instance_of(Elsewhere))
            async with self._served(instances, **settings) as served:
                yield served, upstream

    async def _exchange(
        self, *replies: Reply, stream: bool = True, **fields: Any
    ) -> tuple[Completion, Received]:
        """Send one chat completion; return the answer, and the request at the backend."""
        async with self._behind(*replies) as (served, upstream):
            answer = await self.ask(served, stream=stream, **fields)
        (received,) = upstream.requests
        return answer, received

    def instance(self, upstream: FakeUpstream, number: int) -> Instance:
        """Create an instance that uses the fake upstream; override it to set options."""
        key, url = KEYS[number - 1], upstream.base_url
        return instance_of(self.provider, url, key=key, number=number, takes_images=True)

    @contextlib.asynccontextmanager
    async def _gateway(self) -> AsyncIterator[Served]:
        async with self._behind() as (served, _):
            yield served

    def _need(self, has: object, what: str) -> None:
        """Skip the test if the provider does not support what it needs."""
        if not has:
            pytest.skip(f"{self.provider.title} does not support {what}")

    @both
    async def test_text_is_complete(self, stream: bool) -> None:
        """The caller receives exactly the backend's text."""
        reply = Reply(text='Grüße aus 東京, with "quotes" and\nlines.')
        answer, _ = await self._exchange(reply, stream=stream)
        assert (answer.text, answer.finish) == (reply.text, "stop")

    @both
    async def test_finish_reason_length(self, stream: bool) -> None:
        """An answer that reached its limit has the finish_reason `length`."""
        answer, _ = await self._exchange(Reply(finish="length"), stream=stream)
        assert answer.finish == "length"

    @pytest.mark.parametrize("newline", ["\n", "\r\n"], ids=["lf", "crlf"])
    async def test_unusual_framing(self, newline: str) -> None:
        """Comments, CRLF line endings and events that arrive byte by byte change nothing."""
        reply = Reply(newline=newline, bytewise=True, comments=True, text="Grüße, 世界")
        answer, _ = await self._exchange(reply)
        assert answer.text == reply.text

    async def test_key_is_only_in_a_header(self) -> None:
        """It is neither in the URL nor in the body."""
        _, received = await self._exchange()
        in_headers = any(KEYS[0] in value for value in received.headers.values())
        assert in_headers, "the key must be in a header"
        assert KEYS[0] not in received.target, "the key must not be in the URL"
        assert KEYS[0].encode() not in received.raw, "the key must not be in the body"

    async def test_model_reaches_the_backend(self) -> None:
        """The request at the backend has the caller's model."""
        async with self._behind() as (served, upstream):
            name = served.instances[0].provider_name
            await self.ask(served, model=f"{name}/some-model-of-theirs")
        (received,) = upstream.requests
        assert "some-model-of-theirs" in received.path + received.raw.decode()

    @both
    async def test_tool_call(self, stream: bool) -> None:
        """The tool reaches the backend, and its call the caller: id, name and arguments."""
        self._need(self.tools, "tools")
        reply = Reply(tool_calls=True)
        answer, received = await self._exchange(reply, stream=stream, tools=[TOOL])
        assert [(c["id"], c["name"]) for c in answer.calls] == [("call_1", "get_weather")]
        assert json.loads(answer.calls[0]["arguments"]) == {"city": CITIES[0]}
        assert answer.finish == "tool_calls"
        for part in (b"get_weather", b"Returns the weather.", b"city"):
            assert part in received.raw

    @both
    async def test_parallel_tool_calls(self, stream: bool) -> None:
        """Each of two calls in one answer has its own index, id and arguments."""
        self._need(self.tools, "tools")
        answer, _ = await self._exchange(Reply(tool_calls=2), stream=stream, tools=[TOOL])
        assert [c["id"] for c in answer.calls] == ["call_1", "call_2"]
        cities = [json.loads(c["arguments"])["city"] for c in answer.calls]
        assert cities == [*CITIES[:2]]

    async def test_tool_result_reaches_the_backend(self) -> None:
        """A call and its result are sent with the same id."""
        self._need(self.tools, "tools")
        _, received = await self._exchange(messages=AFTER_A_CALL, tools=[TOOL])
        sent = received.raw
        assert sent.count(CALL_ID.encode()) >= 2, (
            "a call's id must be in the call and in its result"
        )
        assert b"Reykjavik" in sent
        assert b"Nineteen degrees" in sent

    async def test_conversation_reaches_the_backend(self) -> None:
        """System prompt, earlier turns, text in parts and the limit of the answer are sent."""
        _, received = await self._exchange(messages=LONG_TALK, max_tokens=777)
        for part in (b"Speak like a pirate.", b"Iceland", b"matey", b"came second", b"777"):
            assert part in received.raw

    async def test_turns_of_others(self) -> None:
        """Nothing of them is sent that the backend is not known to take.

        An adaptation finds nothing left to change in what is sent. A translation sends nothing that
        `adaptations` do not leave or, if there are none, that OpenAI's reference does not have.
        """
        messages = [*FOREIGN_TALK, *(FOREIGN_CALL if self.tools else [])]
        _, received = await self._exchange(messages=messages)
        provider = self.provider()
        if isinstance(provider, Translator):
            taken = json.dumps(adapted(provider, {"messages": messages}, translated=True))
            sent = [m for m in FOREIGN_MARKS if m not in taken and m in received.raw.decode()]
            assert sent == [], "leave it out in `encode`, or name its field in KnownFields(also=…)"
        else:
            body = received.body
            undone = [a for a in provider.all_adaptations if a.adapt(body) != body]
            assert undone == [], "`prepare` or another adaptation has undone it"

    async def test_attempts_are_identical(self) -> None:
        """A provider must not modify the request: the next attempt needs it."""
        async with self._behind(Reply(status=500), count=2) as (served, upstream):
            await served.chat({"messages": LONG_TALK, "stream": True})
        first, second = upstream.requests
        assert first.raw == second.raw

    async def test_concurrent_answers_do_not_mix(self) -> None:
        """Eight different answers at a time: keep state in local variables."""
        texts = {f"The answer number {n} of eight" for n in range(8)}
        replies = [Reply(text=text, delay_s=0.005) for text in texts]
        async with self._behind(*replies) as (served, _):
            answers = await asyncio.gather(*(self.ask(served) for _ in replies))
        assert {answer.text for answer in answers} == texts

    @both
    async def test_image_reaches_the_backend(self, stream: bool) -> None:
        """The image and the text beside it are sent."""
        self._need(self.images, "images")
        _, received = await self._exchange(stream=stream, messages=WITH_IMAGE)
        assert PIXEL.encode() in received.raw
        assert b"What is this?" in received.raw

    async def test_usage_is_requested_for_the_gateway(self) -> None:
        """With `stream_usage` each stream has usage; only callers who ask for it receive it."""
        answer, received = await self._exchange()
        requested = b"include_usage" in received.raw
        assert requested or not self.provider.stream_usage, "`prepare` must keep `stream_options`"
        assert not answer.usage_alone

    async def test_usage(self) -> None:
        """The backend's counts are in a full answer and in a stream's last chunk."""
        async with self._behind(Reply(usage=True), Reply(usage=True)) as (served, _):
            full = await self.ask(served, stream=False)
            streamed = await self.ask(served, stream_options={"include_usage": True})
        assert full.usage is not None
        assert full.usage["prompt_tokens"] == 7
        assert streamed.usage is not None
        assert streamed.usage["prompt_tokens"] == 7, "the backend's count for the prompt"
        words = len(Reply().contents())
        assert streamed.usage["completion_tokens"] == words, "the backend's count for the answer"

    @both
    async def test_recordings(self, stream: bool) -> None:
        """Recorded answers of the real service are translated correctly."""
        self._need(self.recordings, "recordings")
        for recording in self.recordings.values():
            reply = Reply(body=recording.body, content_type="text/event-stream")
            answer, _ = await self._exchange(reply, stream=stream)
            calls = tuple((c["name"], json.loads(c["arguments"])) for c in answer.calls)
            assert (answer.text, calls) == (recording.text, recording.calls)
            assert answer.finish == recording.finish

    # The backend, the network or the caller fails.

    @both
    async def test_rejection_reaches_the_caller(self, stream: bool) -> None:
        """A 400 is returned as it is after one attempt, and does not count as a failure."""
        rejection = Reply(status=400, error={"message": "No such thing.", "type": "odd"})
        async with self._behind(rejection, count=2) as (served, upstream):
            status, text, _ = await served.chat(stream=stream)
            assert upstream.hits() == 1
            assert {i.default.breaker.state() for i in served.instances} == {State.CLOSED}
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
            assert served.instances[0].default.breaker.state() is State.CLOSED
            assert served.instances[0].default.park_reason() == "rate_limited"

    async def test_rate_limit_of_one_model(self) -> None:
        """The key's other models are still asked: limits are counted for each model."""
        limited = Reply(status=429, headers={"Retry-After": "3600"})
        async with self._behind(limited) as (served, upstream):
            name = served.instances[0].provider_name
            for hits in (1, 2):
                status, text, _ = await served.chat({**HELLO, "model": f"{name}/a-limited-model"})
                assert (status, upstream.hits()) == (429, hits), text
                await self.ask(served, model=f"{name}/another-model")

    @pytest.mark.parametrize("gone", RETIRED.values(), ids=RETIRED)
    async def test_retired_model(self, gone: Reply) -> None:
        """Others answer, it is hardly asked again, its successor is, and the key stays good."""
        async with self._behind(elsewhere=True) as (served, upstream):
            instance = served.instances[0]
            models = (instance.model, *self.provider.successors)
            upstream.choose = lambda r: gone if _model_in(r, models) == instance.model else None
            for _ in range(3):
                status, text, _ = await served.chat(headers=IN_TURN)
                assert status == 200, text
            assert instance.default.park_reason() == "unknown_model"
            if self.provider.successors:
                await self.ask(served, model=instance.provider_name)
            await self.ask(served, model=f"{instance.provider_name}/some-model-of-theirs")
        assert [_model_in(r, models) for r in upstream.requests].count(instance.model) <= 2

    @pytest.mark.parametrize(
        ("refusal", "answers"), [(TOO_LARGE, 1), (PAGE, 2)], ids=["size", "page"]
    )
    async def test_refusal_of_one_request(self, refusal: Reply, answers: int) -> None:
        """If it is too large for a key, another key answers; if a firewall blocks it, a provider.

        No key is parked for it.
        """
        async with self._behind(refusal, count=2, elsewhere=True) as (served, _):
            status, text, headers = await served.chat(headers=IN_TURN)
            assert (status, headers["X-Nexus-Provider"]) == (200, served.instances[answers].name)
            assert all(i.is_available for i in served.instances), text

    @both
    async def test_error_inside_a_200(self, stream: bool) -> None:
        """It is never an answer. If its words name a fault of the request, the caller gets them."""
        broken, too_long = (
            Reply(error=error, error_after=0, role_first=False, whole_fate=Fate.ERROR)
            for error in ({"message": "Something broke."}, TOO_LONG)
        )
        async with self._behind(broken, too_long, elsewhere=True) as (served, upstream):
            instance, other = served.instances
            status, text, headers = await served.chat(stream=stream, headers=IN_TURN)
            assert (status, headers["X-Nexus-Provider"]) == (200, other.name), text
            body = {**HELLO, "model": instance.provider_name, "stream": stream}
            status, text, _ = await served.chat(body)
            assert status == 400, text
            assert json.loads(text)["error"]["message"] == TOO_LONG["message"]
            assert instance.default.breaker.failures_in_a_row == 1, "only the first is its failure"
        assert upstream.hits() == 2

    async def test_rejected_key(self) -> None:
        """A rejected key is not tried again, and the caller never sees a 401."""
        async with self._behind(Reply(status=401)) as (served, upstream):
            assert (await served.chat())[0] == 503
            assert (await served.chat())[0] == 503
            assert upstream.hits() == 1
            assert served.instances[0].default.park_reason() == "bad_key"

    @pytest.mark.parametrize(
        "failure",
        [Reply(reset=True), Reply(error_after=0), Reply(end_after=0)],
        ids=["reset", "error", "empty"],
    )
    async def test_failure_before_the_first_content(self, failure: Reply) -> None:
        """A stream that fails before its first content fails over."""
        async with self._behind(failure, count=2) as (served, upstream):
            status, text, _ = await served.chat()
            assert (status, read_stream(text).text) == (200, Reply().text)
        assert upstream.hits() == 2

    async def test_no_first_content_in_time(self) -> None:
        """An instance that does not answer in time is given up, and another one answers."""
        limit = {"first_token_timeout_ms": FIRST_TOKEN_MS}
        async with self._behind(Reply(hang=True), elsewhere=True, **limit) as (served, _):
            status, text, headers = await served.chat(headers=IN_TURN)
            assert (status, headers["X-Nexus-Attempts"]) == (200, "2"), text

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
            assert served.instances[0].default.breaker.state() is State.CLOSED
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


def _model_in(received: Received, models: Iterable[str]) -> str:
    """Return which of the models a request is for, "" for none of them."""
    sent = received.path + received.raw.decode()
    return max((model for model in models if model in sent), key=len, default="")


async def _until(done: Callable[[], bool], within_s: float = 2.0) -> None:
    end_s = time.monotonic() + within_s
    while not done() and time.monotonic() < end_s:  # noqa: ASYNC110 - there is no event
        await asyncio.sleep(0.01)
    assert done()
