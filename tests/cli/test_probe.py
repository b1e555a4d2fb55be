"""`check` sends one small request to every instance."""

from __future__ import annotations

import pytest
from fakes import Fake, make_instance

from nexus_gateway.cli.check import probe_all
from nexus_gateway.provider import Model
from nexus_gateway.routing.pool import Pool
from nexus_gateway.settings import Settings
from nexus_gateway.testing.reply import Reply
from nexus_gateway.testing.upstream import FakeUpstream

ADVICE = "check FAKE_MODEL and FAKE_BASE_URL (it usually ends in /v1)"


class Vectors(Fake):
    title = "Vectors"
    models = (Model("v-1", kind="embeddings"),)
    endpoints = {"embeddings": "/embeddings"}


class Transcriber(Vectors):
    title = "Transcriber"
    endpoints = {"transcriptions": "/audio/transcriptions"}


async def result(upstream: FakeUpstream, provider: type[Fake]) -> tuple[bool, str]:
    pool = Pool(instances=[make_instance(upstream, provider=provider)])
    ((_, latency_ms, reason),) = await probe_all(Settings(), pool)
    return latency_ms is not None, reason


@pytest.mark.parametrize(
    ("provider", "reply", "expected"),
    [
        (Fake, Reply(), (True, "ok")),
        (Fake, Reply(status=401), (False, "the key was refused (401)")),
        (Fake, Reply(status=404), (False, f"refused with 404; {ADVICE}")),
        (Vectors, Reply(), (True, "ok")),
        (Vectors, Reply(status=404), (False, f"refused with 404; {ADVICE}")),
        (Vectors, Reply(status=500), (False, "answered 500")),
        (Transcriber, Reply(), (False, "supports no endpoint that can be checked")),
    ],
)
async def test_the_result_is_ok_or_a_reason(
    upstream: FakeUpstream, provider: type[Fake], reply: Reply, expected: tuple[bool, str]
) -> None:
    upstream.default = reply
    assert await result(upstream, provider) == expected


async def test_the_request_is_minimal(upstream: FakeUpstream) -> None:
    for provider in (Fake, Vectors):
        await result(upstream, provider)
    chat, vectors = [r.body for r in upstream.requests]
    assert (chat["model"], chat["max_tokens"]) == ("fake-large", 1)
    assert vectors == {"model": "v-1", "input": "ping"}
