"""What holds for every provider, and what the tests of those that ask over HTTP stand on."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any, ClassVar

import pytest

from nexus_gateway.discovery import PROVIDERS
from nexus_gateway.provider import Provider
from nexus_gateway.routing.instance import Instance
from nexus_gateway.testing.conformance.conversations import (
    KEYS,
    Recording,
    Told,
    read_stream,
    read_whole,
)
from nexus_gateway.testing.gateway import HELLO, Served, instance_of, serving
from nexus_gateway.testing.reply import Reply
from nexus_gateway.testing.upstream import FakeUpstream
from nexus_gateway.testing.wire import Wire

both = pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])


@pytest.mark.asyncio
class InProcessConformance:
    """What holds for every provider.

    Attributes:
        provider: the class under test.
        settings: of the gateway before it, where they differ from the defaults.
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
        """Serve one instance of the provider."""
        async with self._served([instance_of(self.provider, key=KEYS[0])]) as served:
            yield served

    async def ask(self, served: Served, *, stream: bool = True, **fields: Any) -> Told:
        """Ask for a chat completion and read it; it must be a good one."""
        body = {**HELLO, "stream": stream, **fields}
        status, text, headers = await served.chat(body)
        assert status == 200, text
        assert headers["X-Nexus-Provider"] == served.instances[0].name
        return read_stream(text) if stream else read_whole(text)

    async def test_the_class_keeps_the_contract(self) -> None:
        """What the gateway checks when it loads the plugin."""
        assert [*PROVIDERS.contract_errors(self.provider)] == []
        chat_models = [m.id for m in self.provider.models if m.kind == "chat"]
        if self.provider.default_model and chat_models:
            assert self.provider.default_model in chat_models, "it must stand in `models`"
        assert self.provider.base_url.rstrip("/") == self.provider.base_url

    @both
    async def test_it_answers(self, stream: bool) -> None:
        """With something, an end, and the instance's name."""
        async with self._gateway() as served:
            told = await self.ask(served, stream=stream)
        assert told.text or told.calls
        assert told.finish
        assert told.models == {served.instances[0].name}

    async def test_usage_is_told_to_those_who_ask(self) -> None:
        """A stream's usage chunk comes only when it is asked for."""
        async with self._gateway() as served:
            asked = await self.ask(served, stream_options={"include_usage": True})
            unasked = await self.ask(served)
        assert asked.usage is None or asked.usage["total_tokens"] > 0
        assert not unasked.usage_alone

    async def test_many_at_once_do_not_mix(self) -> None:
        """One provider object serves all requests: state belongs into local variables."""
        async with self._gateway() as served:
            first = await self.ask(served)
            many = await asyncio.gather(*(self.ask(served) for _ in range(8)))
        assert {told.text for told in many} == {first.text}


class WireSuite(InProcessConformance):
    """What the tests of a provider that asks over HTTP stand on.

    Attributes:
        wire: makes what puts the fake upstream's answers into bytes; None: as the official
            service at the path speaks.
        recordings: answers of the real service, by name.
        tools: whether the provider passes tools on.
        images: whether it passes images on to a model that takes them.
    """

    wire: ClassVar[Callable[[], Wire] | None] = None
    recordings: ClassVar[Mapping[str, Recording]] = {}
    tools: ClassVar[bool] = True
    images: ClassVar[bool] = True

    @contextlib.asynccontextmanager
    async def _behind(
        self, *replies: Reply, count: int = 1, **settings: Any
    ) -> AsyncIterator[tuple[Served, FakeUpstream]]:
        """Serve some keys of the provider before a fake upstream."""
        wire = type(self).wire
        async with FakeUpstream(wire) as upstream:
            upstream.script(*replies)
            instances = [self.instance(upstream, n + 1) for n in range(count)]
            async with self._served(instances, **settings) as served:
                yield served, upstream

    def instance(self, upstream: FakeUpstream, number: int) -> Instance:
        """Make an instance that asks the fake upstream; override it for one with options."""
        model = self.provider.default_model or "a-model"
        return instance_of(
            self.provider,
            upstream.base_url,
            key=KEYS[number - 1],
            number=number,
            model=model,
            takes_images=True,
        )

    @contextlib.asynccontextmanager
    async def _gateway(self) -> AsyncIterator[Served]:
        async with self._behind() as (served, _):
            yield served

    def _need(self, has: object, what: str) -> None:
        """Skip a test of what the provider does not have."""
        if not has:
            pytest.skip(f"{self.provider.title} is said to have no {what}")
