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
import json

import pytest

from nexus_gateway.testing.conformance.conversations import (
    AFTER_A_CALL,
    KEYS,
    LONG_TALK,
    PIXEL,
    TOOL,
    WITH_IMAGE,
    Recording,
)
from nexus_gateway.testing.conformance.failures import FailureSuite
from nexus_gateway.testing.conformance.suite import InProcessConformance, both
from nexus_gateway.testing.reply import CITIES, Reply

__all__ = ["InProcessConformance", "ProviderConformance", "Recording"]


class ProviderConformance(FailureSuite):
    """The tests for every provider that uses HTTP; `WireSuite` describes the attributes."""

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
        assert sent.count(b"call_777") >= 2, "a call's id must be in the call and in its result"
        assert b"Reykjavik" in sent
        assert b"Nineteen degrees" in sent

    async def test_conversation_reaches_the_backend(self) -> None:
        """System prompt, earlier turns, text in parts and the limit of the answer are sent."""
        _, received = await self._exchange(messages=LONG_TALK, max_tokens=777)
        for part in (b"Speak like a pirate.", b"Iceland", b"matey", b"came second", b"777"):
            assert part in received.raw

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
