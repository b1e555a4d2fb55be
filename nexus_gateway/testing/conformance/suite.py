"""The tests for every provider, and the base of the tests for those that use HTTP."""

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
    Completion,
    Recording,
    read_stream,
    read_whole,
)
from nexus_gateway.testing.gateway import HELLO, Served, instance_of, serving
from nexus_gateway.testing.received import Received
from nexus_gateway.testing.reply import Reply
from nexus_gateway.testing.upstream import FakeUpstream
from nexus_gateway.testing.wire import Wire

both = pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])


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
        assert [*PROVIDERS.faults(self.provider)] == []
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

    async def test_concurrent_requests_do_not_mix(self) -> None:
        """One provider object serves all requests: keep state in local variables."""
        async with self._gateway() as served:
            first = await self.ask(served)
            many = await asyncio.gather(*(self.ask(served) for _ in range(8)))
        assert {answer.text for answer in many} == {first.text}


class WireSuite(InProcessConformance):
    """The base of the tests for a provider that uses HTTP.

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
        self, *replies: Reply, count: int = 1, **settings: Any
    ) -> AsyncIterator[tuple[Served, FakeUpstream]]:
        """Run a gateway with `count` instances in front of a fake upstream."""
        async with FakeUpstream(type(self).wire) as upstream:
            upstream.script(*replies)
            instances = [self.instance(upstream, n + 1) for n in range(count)]
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
