"""The suite that every provider has to pass, over real sockets and through a real gateway.

Subclass it in a test module, name the provider, and pytest finds the rest:

    from nexus_acme import Acme
    from nexus_gateway.testing.conformance import ProviderConformance


    class TestAcme(ProviderConformance):
        provider = Acme

A provider with a wire format of its own also names the `wire` in which the fake upstream answers
(the reverse of its translation), or recordings of the real service, or both. One that is no HTTP
service passes `InProcessConformance`. Needs pytest-asyncio (the extra `testing` brings it).
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
    """What holds for every provider that asks over HTTP; see `WireSuite` for the attributes."""

    @both
    async def test_text_arrives_whole(self, stream: bool) -> None:
        """The text that the backend says is the text that the caller gets."""
        reply = Reply(text='Grüße aus 東京, with "quotes" and\nlines.')
        async with self._behind(reply) as (served, upstream):
            told = await self.ask(served, stream=stream)
        assert (told.text, told.finish) == (reply.text, "stop")
        assert upstream.hits() == 1

    @both
    async def test_an_answer_that_is_cut_short_by_its_limit(self, stream: bool) -> None:
        """`length` stays `length`."""
        async with self._behind(Reply(finish="length")) as (served, _):
            assert (await self.ask(served, stream=stream)).finish == "length"

    @pytest.mark.parametrize("newline", ["\n", "\r\n"], ids=["lf", "crlf"])
    async def test_odd_framing_says_the_same(self, newline: str) -> None:
        """Comments, CRLF line ends and events that come byte by byte change nothing."""
        reply = Reply(newline=newline, bytewise=True, comments=True, text="Grüße, 世界")
        async with self._behind(reply) as (served, _):
            assert (await self.ask(served)).text == reply.text

    async def test_the_key_goes_into_a_header_and_nowhere_else(self) -> None:
        """Neither into the address nor into the body."""
        async with self._behind() as (served, upstream):
            await self.ask(served)
        (received,) = upstream.requests
        in_headers = any(KEYS[0] in value for value in received.headers.values())
        assert in_headers, "the key must travel in a header"
        assert KEYS[0] not in received.target, "the key must not stand in the address"
        assert KEYS[0].encode() not in received.raw, "the key must not stand in the body"

    async def test_the_model_is_asked_for(self) -> None:
        """The model that the caller names reaches the backend."""
        async with self._behind() as (served, upstream):
            name = served.instances[0].provider_name
            await self.ask(served, model=f"{name}/some-model-of-theirs")
        (received,) = upstream.requests
        assert "some-model-of-theirs" in received.path + received.raw.decode()

    @both
    async def test_a_tool_is_called(self, stream: bool) -> None:
        """A tool goes there, its call comes back: id, name and arguments."""
        self._need(self.tools, "tools")
        async with self._behind(Reply(tool_calls=True)) as (served, upstream):
            told = await self.ask(served, stream=stream, tools=[TOOL])
        assert [(c["id"], c["name"]) for c in told.calls] == [("call_1", "get_weather")]
        assert json.loads(told.calls[0]["arguments"]) == {"city": CITIES[0]}
        assert told.finish == "tool_calls"
        sent = upstream.requests[0].raw
        assert b"get_weather" in sent
        assert b"Tells the weather." in sent
        assert b"city" in sent

    @both
    async def test_tools_are_called_side_by_side(self, stream: bool) -> None:
        """Two calls in one answer keep apart: each has an index, an id and arguments of its own."""
        self._need(self.tools, "tools")
        async with self._behind(Reply(tool_calls=2)) as (served, _):
            told = await self.ask(served, stream=stream, tools=[TOOL])
        assert [c["id"] for c in told.calls] == ["call_1", "call_2"]
        cities = [json.loads(c["arguments"])["city"] for c in told.calls]
        assert cities == [*CITIES[:2]]

    async def test_a_tools_result_goes_back(self) -> None:
        """A conversation with a call and its result reaches the backend."""
        self._need(self.tools, "tools")
        async with self._behind() as (served, upstream):
            await self.ask(served, messages=AFTER_A_CALL, tools=[TOOL])
        sent = upstream.requests[0].raw
        assert sent.count(b"call_777") >= 2, "a call's id must be in the call and in its result"
        assert b"Reykjavik" in sent
        assert b"Nineteen degrees" in sent

    async def test_a_conversation_goes_there_whole(self) -> None:
        """System prompt, earlier turns, text in parts and the limit of the answer."""
        async with self._behind() as (served, upstream):
            await self.ask(served, messages=LONG_TALK, max_tokens=777)
        sent = upstream.requests[0].raw
        for said in (b"Speak like a pirate.", b"Iceland", b"matey", b"came second", b"777"):
            assert said in sent

    async def test_each_attempt_is_sent_the_same(self) -> None:
        """A provider must not change the chat that it is given: the next attempt needs it."""
        async with self._behind(Reply(status=500), count=2) as (served, upstream):
            await served.chat({"messages": LONG_TALK, "stream": True})
        first, second = upstream.requests
        assert first.raw == second.raw

    async def test_answers_side_by_side_do_not_mix(self) -> None:
        """Eight different answers at once: state belongs into local variables."""
        texts = {f"The answer number {n} of eight" for n in range(8)}
        replies = [Reply(text=text, delay_s=0.005) for text in texts]
        async with self._behind(*replies) as (served, _):
            told = await asyncio.gather(*(self.ask(served) for _ in replies))
        assert {one.text for one in told} == texts

    @both
    async def test_an_image_goes_there(self, stream: bool) -> None:
        """An image in the request reaches the backend."""
        self._need(self.images, "images")
        async with self._behind() as (served, upstream):
            await self.ask(served, stream=stream, messages=WITH_IMAGE)
        assert PIXEL.encode() in upstream.requests[0].raw
        assert b"What is this?" in upstream.requests[0].raw

    async def test_usage_is_asked_for_where_the_caller_does_not(self) -> None:
        """`stream_usage` promises that the backend takes that; the caller sees no usage chunk."""
        async with self._behind() as (served, upstream):
            told = await self.ask(served)
        asked = b"include_usage" in upstream.requests[0].raw
        assert asked or not self.provider.stream_usage, "`prepare` must leave `stream_options`"
        assert not told.usage_alone

    async def test_usage_is_counted(self) -> None:
        """As the backend counts it, in a whole answer and in a stream's last chunk."""
        async with self._behind(Reply(usage=True), Reply(usage=True)) as (served, _):
            whole = await self.ask(served, stream=False)
            told = await self.ask(served, stream_options={"include_usage": True})
        assert whole.usage is not None
        assert whole.usage["prompt_tokens"] == 7
        assert told.usage is not None
        assert told.usage["prompt_tokens"] == 7, "7 is what the backend counted for the prompt"
        words = len(Reply().contents())
        assert told.usage["completion_tokens"] == words, "and this for the answer"

    @both
    async def test_recordings_say_what_they_say(self, stream: bool) -> None:
        """What the real service sent is understood."""
        self._need(self.recordings, "recordings")
        for recording in self.recordings.values():
            reply = Reply(body=recording.body, content_type="text/event-stream")
            async with self._behind(reply) as (served, _):
                told = await self.ask(served, stream=stream)
            calls = tuple((c["name"], json.loads(c["arguments"])) for c in told.calls)
            assert (told.text, calls) == (recording.text, recording.calls)
            assert told.finish == recording.finish
