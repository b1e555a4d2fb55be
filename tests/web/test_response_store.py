"""The responses that a gateway keeps: OpenAI's official client, two callers, restarts, workers."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import signal
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from clock import FakeClock
from endpoints import Native
from fakes import Fake, Served, make_instance, serving
from official import openai
from processes import process, worker_pids, write_env
from waiting import until

from nexus_gateway.hooks import Hook, HookRequest, HookResponse
from nexus_gateway.secret import Secret
from nexus_gateway.store import ResponseStore
from nexus_gateway.store.memory import MemoryStore
from nexus_gateway.store.sqlite import SQLiteStore
from nexus_gateway.testing.reply import Reply
from nexus_gateway.testing.upstream import FakeUpstream

KEYS = {"gateway_keys": (Secret("anns-key"), Secret("bobs-key"))}
TOOL = {
    "type": "function",
    "name": "get_weather",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
}
both = pytest.mark.parametrize("stream", [True, False], ids=["stream", "complete"])
Client = Any


@pytest.fixture(params=["memory", "sqlite"])
def where(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return "memory" if request.param == "memory" else str(tmp_path / "responses.sqlite3")


@asynccontextmanager
async def client_of(url: str, key: str = "anns-key") -> AsyncIterator[Client]:
    async with openai.AsyncOpenAI(base_url=url + "/v1", api_key=key, max_retries=0) as client:
        yield client


@pytest.fixture
async def served(upstream: FakeUpstream, where: str) -> AsyncIterator[Served]:
    instance = make_instance(upstream)
    async with serving(instance, response_store=where, max_attempts=1, **KEYS) as served:
        yield served


@pytest.fixture
async def client(served: Served) -> AsyncIterator[Client]:
    async with client_of(served.url) as client:
        yield client


async def ask(client: Client, stream: bool = False, **fields: Any) -> Any:
    request = {"model": "auto", "input": "Hello!", **fields}
    if not stream:
        return await client.responses.create(**request)
    *_, last = [event async for event in await client.responses.create(**request, stream=True)]
    return last.response


async def count(store: ResponseStore) -> int:
    if isinstance(store, MemoryStore):
        return len(store._entries)
    assert isinstance(store, SQLiteStore)
    with contextlib.closing(sqlite3.connect(store._path)) as connection:
        rows: int = connection.execute("SELECT COUNT(*) FROM responses").fetchone()[0]
    return rows


def native(text: str, *, stream: bool) -> Reply:
    """Return an answer of a backend that offers Responses itself."""
    part = {"type": "output_text", "text": text, "annotations": []}
    thought = {"type": "reasoning", "id": f"rs_{text}", "summary": []}
    message = {"type": "message", "id": f"msg_{text}", "role": "assistant", "content": [part]}
    body = {
        **{"id": f"resp_{text}", "object": "response", "created_at": 1, "model": "m"},
        **{"status": "completed", "output": [thought, {**message, "status": "completed"}]},
        **{"parallel_tool_calls": True, "tool_choice": "auto", "tools": []},
    }
    if not stream:
        return Reply(body=json.dumps(body).encode(), content_type="application/json")
    delta = {"type": "response.output_text.delta", "item_id": message["id"], "delta": text}
    events = [
        {**delta, "output_index": 1, "content_index": 0, "sequence_number": 0, "logprobs": []},
        {"type": "response.completed", "response": body, "sequence_number": 1},
    ]
    lines = [f"event: {e['type']}\ndata: {json.dumps(e)}\n\n" for e in events]
    return Reply(body="".join(lines).encode(), content_type="text/event-stream")


def roles_of(upstream: FakeUpstream) -> list[str]:
    return [message["role"] for message in upstream.requests[-1].body["messages"]]


@both
async def test_a_conversation_continues_from_its_last_response(
    client: Client, upstream: FakeUpstream, stream: bool
) -> None:
    upstream.script(Reply(tool_calls=True), Reply(text="19."), Reply(text="Bye."))
    first = await ask(client, stream, tools=[TOOL], instructions="Be brief.")
    (call,) = first.output
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "19 C"}
    second = await ask(client, stream, input=[result], previous_response_id=first.id)
    assert second.output_text == "19."
    assert (second.previous_response_id, second.store) == (first.id, True)
    assert roles_of(upstream) == ["user", "assistant", "tool"]  # without the instructions
    await client.responses.delete(first.id)
    third = await ask(client, stream, input="Thanks!", previous_response_id=second.id)
    assert roles_of(upstream) == ["user", "assistant", "tool", "assistant", "user"]
    assert third.output_text == "Bye."
    texts = [message["content"] for message in upstream.requests[-1].body["messages"]]
    assert texts == ["Hello!", None, "19 C", "19.", "Thanks!"]


@both
async def test_items_are_referred_to_by_their_ids(
    client: Client, upstream: FakeUpstream, stream: bool
) -> None:
    """As the AI SDK does: its own messages in full, the gateway's items as references."""
    upstream.script(Reply(tool_calls=True, reasoning=True), Reply(text="19."), Reply(text="Bye."))
    history: list[Any] = [{"role": "user", "content": [{"type": "input_text", "text": "Hello!"}]}]
    first = await ask(client, stream, input=history, tools=[TOOL])
    history += [{"type": "item_reference", "id": item.id} for item in first.output]
    call_id = first.output[-1].call_id
    history.append({"type": "function_call_output", "call_id": call_id, "output": "19 C"})
    second = await ask(client, stream, input=history, tools=[TOOL])
    assert roles_of(upstream) == ["user", "assistant", "tool"]
    history += [{"id": item.id} for item in second.output]
    await client.responses.delete(first.id)  # its items are also in the second's input
    await ask(client, stream, input=[*history, {"role": "user", "content": "Thanks!"}])
    assert roles_of(upstream) == ["user", "assistant", "tool", "assistant", "user"]
    call = upstream.requests[-1].body["messages"][1]["tool_calls"][0]["function"]
    assert (call["name"], json.loads(call["arguments"])) == ("get_weather", {"city": "Paris"})


@both
async def test_a_response_is_returned_as_it_was_sent(client: Client, stream: bool) -> None:
    sent = await ask(client, stream, metadata={"a": "b"})
    assert (await client.responses.retrieve(sent.id)).to_dict() == sent.to_dict()


async def test_the_input_is_listed_by_pages(client: Client) -> None:
    inputs = [{"role": "user", "content": f"{number}"} for number in range(5)]
    first = await ask(client, input=[*inputs, {"role": "assistant", "content": "Hm."}])
    second = await ask(client, input="And?", previous_response_id=first.id)
    items = [i async for i in await client.responses.input_items.list(second.id, order="asc")]
    texts = [item.content[0].text for item in items]
    assert texts == ["0", "1", "2", "3", "4", "Hm.", first.output_text, "And?"]
    kinds = [item.content[0].type for item in items]
    assert kinds == ["input_text"] * 5 + ["output_text"] * 2 + ["input_text"]
    ids = [item.id for item in items]
    assert len(set(ids)) == 8
    newest = [i.id async for i in await client.responses.input_items.list(second.id, limit=3)]
    assert newest == ids[::-1]  # the client asks for one page after the other
    page = await client.responses.input_items.list(second.id, limit=2, after=ids[6])
    assert ([item.id for item in page.data], page.has_more) == ([ids[5], ids[4]], True)
    assert (page.first_id, page.last_id) == (ids[5], ids[4])
    one = await client.responses.input_items.list(first.id, after=page.last_id, order="asc")
    assert [item.content[0].text for item in one.data] == ["Hm."]


@pytest.mark.parametrize(
    "query", [{"order": "up"}, {"limit": 0}, {"limit": 101}, {"after": "msg_unknown"}]
)
async def test_a_wrong_page_is_refused(client: Client, query: dict[str, Any]) -> None:
    sent = await ask(client)
    with pytest.raises(openai.BadRequestError) as raised:
        await client.responses.input_items.list(sent.id, extra_query=query)
    assert raised.value.param == next(iter(query))


async def every_use(served: Served, key: str, response: str, item: str) -> list[tuple[int, str]]:
    """Use a response, and an item of it, in each way that there is; return all answers."""
    head = {"Authorization": f"Bearer {key}"}
    answers = []
    for prefix, (method, path) in itertools.product(
        ("/v1", ""),
        (
            ("GET", f"/responses/{response}"),
            ("GET", f"/responses/{response}?stream=true"),
            ("GET", f"/responses/{response}/input_items"),
            ("GET", f"/responses/{response}/input_items?after={item}"),
            ("DELETE", f"/responses/{response}"),
        ),
    ):
        url = served.url + prefix + path
        async with served.session.request(method, url, headers=head) as answer:
            answers.append((answer.status, await answer.text()))
    for path, inputs, more in itertools.product(
        ("/v1/responses", "/responses", "/v1/responses/input_tokens"),
        (
            {"input": "Hi", "previous_response_id": response},
            {"input": [{"type": "item_reference", "id": item}]},
            {"input": [{"type": None, "id": item}]},
            {"input": [{"id": item, "status": "completed"}]},
        ),
        ({}, {"stream": True}, {"stream": True, "store": False}),
    ):
        status, text, _ = await served.post(path, {**inputs, **more}, headers=head)
        answers.append((status, text))
    return answers


@pytest.mark.proves("F64")
@pytest.mark.parametrize("provider", [Fake, Native], ids=["translated", "native"])
async def test_another_callers_response_is_as_one_that_does_not_exist(
    upstream: FakeUpstream, where: str, provider: type[Fake], caplog: pytest.LogCaptureFixture
) -> None:
    instance = make_instance(upstream, provider=provider)
    async with (
        serving(instance, response_store=where, max_attempts=1, **KEYS) as served,
        client_of(served.url) as client,
    ):
        await check_isolation(served, client, upstream)
    assert "secret plan" not in caplog.text


async def check_isolation(served: Served, client: Client, upstream: FakeUpstream) -> None:
    sent = await ask(client, input="my secret plan")
    item = sent.output[0].id
    (mine,) = [i.id async for i in await client.responses.input_items.list(sent.id)]
    hits = upstream.hits()
    for one in (item, mine):
        theirs = await every_use(served, "bobs-key", sent.id, one)
        unknown = await every_use(served, "bobs-key", "resp_unknown", "msg_unknown")
        named = [(s, t.replace("resp_unknown", sent.id)) for s, t in unknown]
        assert theirs == [(s, t.replace("msg_unknown", one)) for s, t in named]
        by_id = [404, 400, 404, 404, 404] * 2  # a kept response is not streamed, whoever's it is
        assert [status for status, _ in theirs] == by_id + [*[400] * 3, *[404] * 9] * 3
        assert not any("secret plan" in text for _, text in theirs)
    assert upstream.hits() == hits
    assert (await client.responses.retrieve(sent.id)).id == sent.id
    own = await every_use(served, "anns-key", sent.id, item)
    by_id = [200, 400, 200, 400, 200, 404, 400, 404, 404, 404]  # it is deleted by the fifth
    assert [status for status, _ in own] == by_id + [*[400] * 3, *[404] * 9] * 3


async def test_without_keys_all_callers_have_the_same_responses(
    upstream: FakeUpstream, where: str
) -> None:
    async with serving(make_instance(upstream), response_store=where) as served:
        async with client_of(served.url) as client:
            sent = await ask(client)
        async with client_of(served.url, "bobs-key") as client:
            assert (await client.responses.retrieve(sent.id)).id == sent.id
            await ask(client, previous_response_id=sent.id)
            assert roles_of(upstream) == ["user", "assistant", "user"]


@pytest.mark.parametrize("known", [True, False])
async def test_an_empty_reference_is_to_nothing(client: Client, known: bool) -> None:
    more = {"previous_response_id": (await ask(client)).id} if known else {}
    with pytest.raises(openai.NotFoundError) as raised:
        await ask(client, input=[{"type": "item_reference", "id": ""}], **more)
    assert raised.value.param == "input"


@pytest.mark.parametrize("id", ["resp_1", "", "é", "a" * 5000, "%", "../x"])
async def test_an_unknown_reference_has_openais_error(
    client: Client, upstream: FakeUpstream, id: str
) -> None:
    with pytest.raises(openai.BadRequestError) as raised:
        await ask(client, extra_body={"previous_response_id": "x" + id})
    error = raised.value
    assert (error.code, error.param) == ("previous_response_not_found", "previous_response_id")
    assert error.type == "invalid_request_error"
    assert error.body["message"].startswith("Previous response with id 'x")
    with pytest.raises(openai.NotFoundError) as missing:
        await ask(client, input=[{"type": "item_reference", "id": "x" + id}])
    assert missing.value.param == "input"
    assert missing.value.body["message"].startswith("Item with id 'x")
    assert upstream.hits() == 0


async def test_half_a_character_is_no_known_id(served: Served) -> None:
    head = {"Authorization": "Bearer anns-key"}
    half = b'"\\ud800"'
    bodies = (
        (400, b'{"input": "Hi", "previous_response_id": ' + half + b"}"),
        (404, b'{"input": [{"type": "item_reference", "id": ' + half + b"}]}"),
    )
    for status, body in bodies:
        answer, text, _ = await served.post("/v1/responses", body, headers=head)
        assert (answer, "not found" in text) == (status, True)


@both
async def test_nothing_is_kept_of_a_request_that_does_not_want_it(
    client: Client, upstream: FakeUpstream, served: Served, stream: bool
) -> None:
    first = await ask(client, stream)
    second = await ask(client, stream, store=False, previous_response_id=first.id)
    assert served.gateway.store is not None
    assert await count(served.gateway.store) == 1
    assert (second.store, roles_of(upstream)) == (False, ["user", "assistant", "user"])
    with pytest.raises(openai.NotFoundError):
        await client.responses.retrieve(second.id)
    with pytest.raises(openai.BadRequestError, match="not found"):
        await ask(client, previous_response_id=second.id)


@both
async def test_an_answer_that_failed_is_not_kept(
    client: Client, upstream: FakeUpstream, served: Served, stream: bool
) -> None:
    upstream.default = Reply(error_after=3, delay_s=0.01) if stream else Reply(status=500)
    with pytest.raises(openai.APIError):
        await ask(client, stream)
    assert served.gateway.store is not None
    assert await count(served.gateway.store) == 0
    upstream.default = Reply()
    await ask(client, stream)
    assert await count(served.gateway.store) == 1


async def test_backends_whose_answers_share_an_id_do_not_mix_conversations(
    client: Client, upstream: FakeUpstream
) -> None:
    upstream.script(Reply(text="One."), Reply(text="Two."))
    first, second = await ask(client), await ask(client)
    await ask(client, previous_response_id=first.id)
    assert upstream.requests[-1].body["messages"][1]["content"] == "One."
    ids = {first.id, second.id, first.output[0].id, second.output[0].id}
    assert len(ids) == 4


async def test_what_is_referred_to_counts_towards_the_largest_body(upstream: FakeUpstream) -> None:
    async with (
        serving(make_instance(upstream), max_body_mb=1) as served,
        client_of(served.url) as client,
    ):
        large = "x" * 700_000
        first = await ask(client, input=large)
        item = {"type": "item_reference", "id": first.output[0].id}
        for fields in ({"previous_response_id": first.id, "input": large}, {"input": [item] * 2}):
            with pytest.raises(openai.APIStatusError) as raised:
                await ask(client, **fields)
            assert raised.value.status_code in (413, 400)
        assert upstream.hits() == 1


async def test_a_hooks_answer_is_what_is_kept(upstream: FakeUpstream) -> None:
    class Redacts(Hook):
        async def before_answer(self, request: HookRequest, response: HookResponse) -> Any:
            return {**response.body, "output": [], "metadata": {"redacted": "yes"}}

    hooks = {"redacts": Redacts()}
    async with (
        serving(make_instance(upstream), hooks=hooks) as served,
        client_of(served.url) as client,
    ):
        sent = await ask(client)
        kept = await client.responses.retrieve(sent.id)
        assert kept.to_dict() == sent.to_dict()
        assert kept.metadata == {"redacted": "yes"}


async def test_a_response_is_kept_for_a_time(upstream: FakeUpstream) -> None:
    clock = FakeClock()
    async with (
        serving(make_instance(upstream, clock=clock), clock=clock) as served,
        client_of(served.url) as client,
    ):
        sent = await ask(client)
        clock.advance(3599)
        await client.responses.retrieve(sent.id)
        clock.advance(1)
        with pytest.raises(openai.NotFoundError):
            await client.responses.retrieve(sent.id)


async def test_without_a_store_nothing_is_kept(upstream: FakeUpstream) -> None:
    async with (
        serving(make_instance(upstream), response_store="") as served,
        client_of(served.url) as client,
    ):
        sent = await ask(client, store=True)
        assert sent.store is False
        with pytest.raises(openai.NotFoundError):
            await client.responses.retrieve(sent.id)
        with pytest.raises(openai.NotFoundError):
            await client.responses.delete(sent.id)
        with pytest.raises(openai.BadRequestError) as raised:
            await ask(client, previous_response_id=sent.id)
        assert raised.value.param == "previous_response_id"


async def test_a_key_that_takes_anothers_number_does_not_get_its_responses(
    upstream: FakeUpstream, tmp_path: Path
) -> None:
    path = str(tmp_path / "responses.sqlite3")
    bob_first = (Secret("bobs-key"), Secret("anns-key"))
    async with (
        serving(make_instance(upstream), response_store=path, **KEYS) as served,
        client_of(served.url) as client,
    ):
        sent = await ask(client)
    async with serving(
        make_instance(upstream), response_store=path, gateway_keys=bob_first
    ) as served:
        async with client_of(served.url, "bobs-key") as client:
            with pytest.raises(openai.NotFoundError):
                await client.responses.retrieve(sent.id)
        async with client_of(served.url) as client:  # a restart changes nothing for her
            await ask(client, previous_response_id=sent.id)
            assert roles_of(upstream) == ["user", "assistant", "user"]
    stored = (tmp_path / "responses.sqlite3").read_bytes()
    assert b"anns-key" not in stored


async def test_a_store_that_fails_costs_no_answer(
    upstream: FakeUpstream, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = str(tmp_path)
    async with (
        serving(make_instance(upstream), response_store=folder) as served,
        client_of(served.url) as client,
    ):
        sent = await ask(client, True, input="my secret plan")
        assert sent.output_text == Reply().text
        with pytest.raises(openai.InternalServerError) as raised:
            await ask(client, previous_response_id=sent.id)
        assert (raised.value.status_code, raised.value.code) == (503, "store_unavailable")
    assert "secret plan" not in caplog.text


@both
async def test_a_native_backend_gets_the_conversation_and_no_reference(
    upstream: FakeUpstream, stream: bool
) -> None:
    async with (
        serving(make_instance(upstream, provider=Native), max_attempts=1) as served,
        client_of(served.url) as client,
    ):
        upstream.script(*(native(text, stream=stream) for text in ("One", "Two", "Three")))
        first = await ask(client, stream)
        assert first.id == "resp_One"
        item = {"type": "item_reference", "id": first.output[1].id}
        question = {"role": "user", "content": "And?", "id": "msg_own"}
        second = await ask(client, stream, input=[question], previous_response_id=first.id)
        sent = upstream.requests[-1].body
        assert "previous_response_id" not in sent
        assert "store" not in sent
        assert [i.get("role") for i in sent["input"]] == ["user", "assistant", "user"]
        assert [i.get("id") for i in sent["input"]] == [None, None, "msg_own"]
        assert sent["input"][1]["content"][0]["text"] == "One"
        assert (await client.responses.retrieve(second.id)).to_dict() == second.to_dict()
        await ask(client, stream, input=[item], store=True)
        (only,) = upstream.requests[-1].body["input"]
        assert (only.get("id"), only["content"][0]["text"]) == (None, "One")
        assert upstream.requests[-1].body["store"] is True
        hits = upstream.hits()
        with pytest.raises(openai.BadRequestError) as raised:
            await ask(client, stream, previous_response_id="resp_of_another")
        assert raised.value.code == "previous_response_not_found"
        assert upstream.hits() == hits


ODD = {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "One"}]}


@pytest.mark.parametrize(
    ("fields", "sent"),
    [
        ({"output": [7, None, {"type": []}, {"id": []}, {**ODD, "id": ["x"]}]}, 2),
        ({"output": [ODD, {"id": "no type"}]}, 2),
        ({"output": "text"}, None),
        ({"id": 7}, None),
        ({"id": "é"}, None),
    ],
    ids=str,
)
async def test_odd_answers_of_a_backend_do_no_harm(
    upstream: FakeUpstream, fields: dict[str, Any], sent: int | None
) -> None:
    answer = {"id": "resp_One", "object": "response", "status": "completed", "output": [], **fields}
    events = f"data: {json.dumps({'type': 'response.x.delta'})}\n\n"
    events += f"data: {json.dumps({'type': 'response.completed', 'response': answer})}\n\n"
    async with serving(make_instance(upstream, provider=Native)) as served:
        for body, kind in ((json.dumps(answer), "application/json"), (events, "text/event-stream")):
            upstream.script(Reply(body=body.encode(), content_type=kind))
            request = {"input": "Hi", "stream": kind == "text/event-stream"}
            status, text, _ = await served.post("/v1/responses", request)
            if status == 200:
                assert json.loads(text.split("data: ")[-1])
            upstream.script(native("Two", stream=False))
            again = {"input": "And?", "previous_response_id": "resp_One"}
            status, _, _ = await served.post("/v1/responses", again)
            assert status == (400 if sent is None else 200)
            if sent is not None:
                assert len(upstream.requests[-1].body["input"]) >= sent
            unknown = {"input": [{"id": "no type"}]}
            assert (await served.post("/v1/responses", unknown))[0] == 404


async def test_a_conversation_moves_between_kinds_of_backends(upstream: FakeUpstream) -> None:
    instances = [
        make_instance(upstream, provider=Native, name="native"),
        make_instance(upstream, provider=Fake, name="chat"),
    ]
    async with serving(*instances) as served, client_of(served.url) as client:
        upstream.script(native("One", stream=False), Reply(), native("Two", stream=False))
        first = await ask(client, model="native")
        second = await ask(client, model="chat", previous_response_id=first.id)
        assert roles_of(upstream) == ["user", "assistant", "user"]
        await ask(client, model="native", previous_response_id=second.id)
        roles = [item["role"] for item in upstream.requests[-1].body["input"]]
        assert roles == ["user", "assistant", "user", "assistant", "user"]


async def test_tokens_are_estimated(served: Served, client: Client) -> None:
    answer = await client.responses.input_tokens.with_raw_response.count(
        model="auto", input="word " * 400, tools=[TOOL]
    )
    counted = answer.parse()
    assert counted.object == "response.input_tokens"
    assert 500 <= counted.input_tokens <= 600
    assert answer.headers["X-Nexus-Estimate"] == "true"
    sent = await ask(client, input="word " * 400)
    more = await client.responses.input_tokens.count(input="Hi", previous_response_id=sent.id)
    assert more.input_tokens > 500
    picture = {"type": "input_image", "image_url": "data:image/png;base64," + "A" * 100_000}
    image = await client.responses.input_tokens.count(
        input=[{"role": "user", "content": [picture]}]
    )
    assert 500 < image.input_tokens < 2000


async def test_compacting_is_not_offered(client: Client) -> None:
    with pytest.raises(openai.NotFoundError) as raised:
        await client.responses.compact(model="auto", input="Hi")
    assert raised.value.code == "endpoint_not_offered"


async def test_two_workers_know_each_others_responses(
    upstream: FakeUpstream, tmp_path: Path
) -> None:
    write_env(tmp_path / ".env", upstream)
    env = {"LEDGER": f"sqlite:///{tmp_path}/kept/ledger.sqlite3", "RESPONSE_STORE": ""}
    async with process(tmp_path, "--workers", "2", **env) as gateway:
        for _ in range(6):  # each with a connection of its own, which any worker may accept
            async with client_of(gateway.url) as client:
                sent = await ask(client)
            async with client_of(gateway.url) as client:
                await ask(client, previous_response_id=sent.id)
                await client.responses.delete(sent.id)
    assert (tmp_path / "kept" / "responses.sqlite3").exists()


async def test_a_response_in_a_file_survives_its_worker(
    upstream: FakeUpstream, tmp_path: Path
) -> None:
    write_env(tmp_path / ".env", upstream)
    async with process(
        tmp_path, "--workers", "2", XDG_STATE_HOME=str(tmp_path), RESPONSE_STORE=""
    ) as gateway:
        async with client_of(gateway.url) as client:
            sent = await ask(client)
        for pid in await worker_pids(gateway):
            os.kill(pid, signal.SIGKILL)
        await until(lambda: "".join(gateway.log).count("is serving") == 4)
        async with client_of(gateway.url) as client:
            await ask(client, previous_response_id=sent.id)
    assert roles_of(upstream) == ["user", "assistant", "user"]


async def test_in_memory_each_worker_knows_only_its_own_responses(
    upstream: FakeUpstream, tmp_path: Path
) -> None:
    write_env(tmp_path / ".env", upstream)
    async with (
        process(tmp_path, "--workers", "2", RESPONSE_STORE="memory") as gateway,
        client_of(gateway.url) as client,
    ):
        await worker_pids(gateway)
        sent = await ask(client)  # each client keeps its connection, and so its worker
        statuses = []
        while 404 not in statuses and len(statuses) < 100:
            async with client_of(gateway.url) as other:
                try:
                    await other.responses.retrieve(sent.id)
                    statuses.append(200)
                except openai.NotFoundError:
                    statuses.append(404)
                    with pytest.raises(openai.BadRequestError) as raised:
                        await ask(other, previous_response_id=sent.id)
                    assert raised.value.code == "previous_response_not_found"
        assert statuses[-1] == 404
        await ask(client, previous_response_id=sent.id)
    assert any("each worker knows only" in line for line in gateway.log)
