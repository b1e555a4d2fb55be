"""OpenAI's official client on the embeddings, completions and transcriptions endpoints."""

from __future__ import annotations

import asyncio
import io
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from fakes import KEYS, Fake, Served, make_instance, serving
from official import openai

from nexus_gateway.provider import Model
from nexus_gateway.secret import Secret
from nexus_gateway.testing.reply import Reply
from nexus_gateway.testing.upstream import FakeUpstream

MB = 1024 * 1024
SOUND = bytes(range(256)) * 40 + b"\r\n--not-a-boundary\r\n"
PATHS = {
    "embeddings": "/embeddings",
    "completions": "/completions",
    "transcriptions": "/audio/transcriptions",
}


class Able(Fake):
    title = "Able"
    endpoints = {**Fake.endpoints, **PATHS}
    models = (
        *Fake.models,
        *(Model(f"{kind}-{size}", kind=kind) for kind in PATHS for size in ("one", "two")),
    )


class AlsoAble(Able):
    title = "Also"


async def transcribe(
    client: openai.AsyncOpenAI, model: str = "transcriptions-two", **more: Any
) -> Any:
    file = ("a.wav", SOUND, "audio/wav")
    return await client.audio.transcriptions.create(model=model, file=file, **more)


async def ask(client: openai.AsyncOpenAI, kind: str, model: str = "{}-two") -> Any:
    name = model.format(kind)
    if kind == "embeddings":
        return await client.embeddings.create(model=name, input="Hello", encoding_format="float")
    if kind == "completions":
        return await client.completions.create(model=name, prompt="Hello", max_tokens=9)
    return await transcribe(client, name)


every_kind = pytest.mark.parametrize("kind", PATHS)


@pytest.fixture
async def served(upstream: FakeUpstream) -> AsyncIterator[Served]:
    only_chat = make_instance(upstream)
    able = make_instance(upstream, number=2, provider=Able, name="able")
    also = make_instance(upstream, number=3, provider=AlsoAble, name="also")
    settings: dict[str, Any] = {"gateway_keys": (Secret("caller"),), "max_body_mb": 4}
    async with serving(only_chat, able, also, **settings) as gateway:
        yield gateway
    assert [i.in_flight for i in gateway.instances] == [0, 0, 0]


@pytest.fixture
async def client(served: Served) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(
        base_url=served.url + "/v1", api_key="caller", max_retries=0
    ) as client:
        yield client


async def test_embeddings_are_returned(client: openai.AsyncOpenAI, upstream: FakeUpstream) -> None:
    answer = await ask(client, "embeddings")
    assert answer.data[0].embedding == [0.25, -0.5]
    assert (answer.model, answer.usage.prompt_tokens) == ("fake-model", 7)
    asked = {"model": "embeddings-two", "input": "Hello", "encoding_format": "float"}
    assert [(r.path, r.body) for r in upstream.requests] == [("/v1/embeddings", asked)]


@pytest.mark.parametrize("model", ["auto", "nexus"])
async def test_embeddings_need_a_model_name(
    client: openai.AsyncOpenAI, upstream: FakeUpstream, model: str
) -> None:
    with pytest.raises(openai.BadRequestError, match="must name an embedding model") as raised:
        await ask(client, "embeddings", model)
    assert raised.value.param == "model"
    assert upstream.hits() == 0


async def test_completions_are_returned_and_streamed(
    client: openai.AsyncOpenAI, upstream: FakeUpstream
) -> None:
    answer = await ask(client, "completions")
    assert (answer.choices[0].text, answer.choices[0].finish_reason) == (Reply().text, "stop")
    assert answer.usage.prompt_tokens == 7
    stream = await client.completions.create(
        model="auto", prompt="Hello", stream=True, stream_options={"include_usage": True}
    )
    *parts, last = [part async for part in stream]
    assert "".join(part.choices[0].text for part in parts) == Reply().text
    assert (last.choices, last.usage.prompt_tokens) == ([], 7)
    one, two = upstream.requests
    assert one.body["model"] == "completions-two"
    assert (two.body["model"], two.body["stream"]) == ("completions-one", True)


async def test_a_broken_completion_raises(
    client: openai.AsyncOpenAI, upstream: FakeUpstream
) -> None:
    upstream.default = Reply(cut_after=3, delay_s=0.01)
    stream = await client.completions.create(model="auto", prompt="Hello", stream=True)
    with pytest.raises(openai.APIError, match="connection broke"):
        async for _ in stream:
            pass


async def test_a_transcription_form_is_rebuilt(
    client: openai.AsyncOpenAI, upstream: FakeUpstream
) -> None:
    answer = await transcribe(client, language="en", extra_body={"api_key": "foreign"})
    assert answer.text == Reply().text
    (received,) = upstream.requests
    _, _, boundary = received.headers["Content-Type"].partition("boundary=")
    first, *parts, last = received.raw.split(b"--" + boundary.encode())
    assert (first, last) == (b"", b"--\r\n")
    read = [part.removesuffix(b"\r\n").partition(b"\r\n\r\n") for part in parts]
    fields = [(re.findall(rb' name="(\w+)"', head), value) for head, _, value in read]
    expected = [b"model", b"transcriptions-two"], [b"language", b"en"], [b"file", SOUND]
    assert fields == [([name], value) for name, value in expected]
    assert received.headers["Content-Length"] == str(len(received.raw))
    assert "caller" not in " ".join(received.headers.values())


async def test_a_transcript_can_be_plain_text(
    client: openai.AsyncOpenAI, upstream: FakeUpstream
) -> None:
    upstream.default = Reply(body="Grüße.\n".encode(), content_type="text/plain")
    assert await transcribe(client, response_format="text") == "Grüße.\n"
    assert b'name="response_format"\r\n\r\ntext\r\n' in upstream.requests[0].raw


async def test_a_transcript_can_be_streamed(
    client: openai.AsyncOpenAI, upstream: FakeUpstream
) -> None:
    stream = await transcribe(client, stream=True)
    *deltas, last = [event async for event in stream]
    assert {event.type for event in deltas} == {"transcript.text.delta"}
    assert "".join(event.delta for event in deltas) == Reply().text
    assert (last.type, last.text) == ("transcript.text.done", Reply().text)


@every_kind
async def test_only_instances_that_support_the_endpoint_are_used(
    client: openai.AsyncOpenAI, upstream: FakeUpstream, kind: str
) -> None:
    for model in ["{}-two", "unknown-model"] * 3:
        await ask(client, kind, model)
    assert (upstream.hits(), upstream.hits(KEYS[0])) == (6, 0)


@every_kind
async def test_an_endpoint_without_an_instance_is_not_found(
    client: openai.AsyncOpenAI, upstream: FakeUpstream, kind: str
) -> None:
    async with serving(make_instance(upstream)) as other:
        with pytest.raises(openai.NotFoundError) as raised:
            await ask(client.copy(base_url=other.url + "/v1"), kind)
    assert raised.value.code == "endpoint_not_offered"
    assert kind in raised.value.body["message"]
    assert upstream.hits() == 0


@every_kind
@pytest.mark.parametrize("status", [500, 429, 401])
async def test_a_failure_is_retried_on_another_instance(
    client: openai.AsyncOpenAI, upstream: FakeUpstream, kind: str, status: int
) -> None:
    upstream.script(Reply(status=status))
    assert await ask(client, kind)
    one, two = upstream.requests
    assert {one.key, two.key} == {KEYS[1], KEYS[2]}
    assert one.raw == two.raw


@every_kind
async def test_a_bad_request_is_returned_to_the_caller(
    client: openai.AsyncOpenAI, upstream: FakeUpstream, kind: str
) -> None:
    upstream.default = Reply(status=400)
    with pytest.raises(openai.BadRequestError, match=r"Scripted 400\."):
        await ask(client, kind)
    assert upstream.hits() == 1


MODELS = {"able": "{}-one", "Able (Key #2)": "{}-one", "able/their-own": "their-own"}


@every_kind
@pytest.mark.parametrize(("model", "asked"), MODELS.items())
async def test_a_model_name_selects_its_instance(
    client: openai.AsyncOpenAI, upstream: FakeUpstream, kind: str, model: str, asked: str
) -> None:
    await ask(client, kind, model)
    (received,) = upstream.requests
    assert (received.key, asked.format(kind).encode() in received.raw) == (KEYS[1], True)


URL = "/v1/audio/transcriptions"
HEAD = {"Authorization": "Bearer caller", "Content-Type": "multipart/form-data; boundary=b"}
BEGIN = (
    b'--b\r\nContent-Disposition: form-data; name="model"\r\n\r\ntranscriptions-one\r\n'
    b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\n'
)
END = b"\r\n--b--\r\n"


async def post(
    served: Served, body: Any, kind: str = HEAD["Content-Type"]
) -> tuple[int, dict[str, Any]]:
    head = {**HEAD, "Content-Type": kind}
    async with served.session.post(served.url + URL, data=body, headers=head) as answer:
        return answer.status, await answer.json()


async def pieces(size: int, between: Callable[[int], Awaitable[None]] | None = None) -> Any:
    yield BEGIN
    for sent in range(0, size, MB // 4):
        if between is not None:
            await between(sent)
        yield b"\0" * min(MB // 4, size - sent)
    yield END


async def test_a_large_file_is_streamed_to_the_upstream() -> None:
    begun = asyncio.Event()

    async def receive(request: web.Request) -> web.Response:
        received = await request.content.readany()
        begun.set()
        received += await request.content.read()
        return web.json_response({"text": "exact" if received == expected else "garbled"})

    async def wait(sent: int) -> None:
        if sent >= 2 * MB:
            await asyncio.wait_for(begun.wait(), 30)

    expected = BEGIN + b"\0" * 3 * MB + END
    app = web.Application()
    app.router.add_post(URL, receive)
    async with TestServer(app) as server:
        instance = make_instance(str(server.make_url("/v1")), provider=Able)
        async with serving(instance) as served:
            assert await post(served, pieces(3 * MB, wait)) == (200, {"text": "exact"})


@pytest.mark.parametrize("stream", [b"true", b"false"], ids=["stream", "complete"])
async def test_a_slow_upload_is_not_a_failure_of_the_instance(
    upstream: FakeUpstream, stream: bytes
) -> None:
    async def slow() -> AsyncIterator[bytes]:
        yield BEGIN.replace(b'"model"', b'"stream"').replace(b"transcriptions-one", stream)
        await asyncio.sleep(1)
        yield END

    limit = "first_token_timeout_ms" if stream == b"true" else "response_timeout_ms"
    async with serving(make_instance(upstream, provider=Able), **{limit: 500}) as served:
        async with served.session.post(served.url + URL, data=slow(), headers=HEAD) as answer:
            await answer.read()
        assert [(i.total_requests, i.default.last_reason) for i in served.instances] == [(1, None)]


@pytest.mark.parametrize(("size", "status", "hits"), [(MB // 2, 200, 2), (3 * MB, 503, 1)])
async def test_a_failed_upload_is_retried_only_if_it_is_buffered(
    served: Served, upstream: FakeUpstream, size: int, status: int, hits: int
) -> None:
    upstream.script(Reply(status=500))
    got, answer = await post(served, pieces(size))
    assert (got, upstream.hits()) == (status, hits)
    assert {r.raw for r in upstream.requests} == {BEGIN + b"\0" * size + END}
    assert status == 200 or "answered 500" in answer["error"]["message"]


@pytest.mark.parametrize("has_length", [True, False], ids=["with a length", "without"])
async def test_too_large_a_file_is_rejected(served: Served, has_length: bool) -> None:
    body: Any = pieces(5 * MB)
    if has_length:
        body = io.BytesIO(b"".join([piece async for piece in body]))
    status, answer = await post(served, body)
    assert (status, answer["error"]["code"]) == (413, "request_too_large")
    assert {i.default.last_reason for i in served.instances} == {None}


FILE = BEGIN.split(b"--b\r\n")[2]
INVALID = "invalid_request_error"
GARBAGE = {
    "empty": b"",
    "garbage": b"garbage",
    "an end": b"--b--\r\n",
    "no head": b"--b\r\n\r\n\r\n--b--\r\n",
    "no boundary": FILE + END,
    "no file": BEGIN.removesuffix(b"--b\r\n" + FILE) + b"--b--\r\n",
    "endless": b"--b\r\n" + b"x" * 300_000,
    "no text": BEGIN.replace(b"transcriptions-one", b"\xff") + END,
}


@pytest.mark.parametrize("name", [*GARBAGE, "multipart/form-data", "application/json"])
async def test_an_invalid_form_is_rejected(
    served: Served, upstream: FakeUpstream, name: str
) -> None:
    arguments = (GARBAGE[name],) if name in GARBAGE else (BEGIN + END, name)
    status, answer = await post(served, *arguments)
    assert (status, answer["error"]["type"]) == (400 if name in GARBAGE else 415, INVALID)
    assert upstream.hits() == 0
