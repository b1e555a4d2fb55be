"""The usage of streams whose callers did not request it: recorded, and not sent to them."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from clock import FakeClock
from cuts import cut
from fakes import HELLO, KEYS, Fake, make_instance, serving
from hypothesis import given
from hypothesis import strategies as st
from official import openai
from scraping import sample, scrape

from nexus_gateway.dialects.body import Body, parse_object
from nexus_gateway.dialects.chat import CHAT_COMPLETIONS
from nexus_gateway.discovery import PROVIDERS
from nexus_gateway.provider import drop_fields
from nexus_gateway.proxy.record import RequestRecord
from nexus_gateway.routing.health import Health
from nexus_gateway.routing.instance import STREAM_USAGE_RETRY_S
from nexus_gateway.testing.conformance.conversations import read_stream
from nexus_gateway.testing.gateway import Served
from nexus_gateway.testing.reply import Reply
from nexus_gateway.testing.upstream import FakeUpstream
from nexus_gateway.wire import sse
from nexus_gateway.wire.chunks import Answer, Chunk
from nexus_gateway.wire.passthrough import ChatPassthrough

USAGE_OPTION = b',"stream_options":{"include_usage":true}'
USED = {"prompt_tokens": 7, "completion_tokens": 9, "total_tokens": 16}
STREAM = {**HELLO, "stream": True}
ANSWER = Answer("chatcmpl-1", 1_700_000_000, "up")
WORDS = ("One", " two", " three", " four", " five", " six", " seven", " eight")
TALK = [ANSWER.text(""), *map(ANSWER.text, WORDS)]
# The wording of Azure, of OpenAI and of servers made with FastAPI.
REFUSALS: tuple[dict[str, Any], ...] = (
    {"error": {"message": "Unrecognized request argument supplied: stream_options"}},
    {"error": {"message": "Unknown parameter.", "param": "stream_options"}},
    {"detail": [{"loc": ["body", "stream_options"], "msg": "Extra inputs are not permitted"}]},
)


def refusal(error: dict[str, Any], status: int = 400) -> Reply:
    return Reply(status=status, body=json.dumps(error).encode())


class Counts(Fake):
    """A backend that sends usage if it is requested."""

    title = "Counts"
    stream_usage = True


class Changes(Counts):
    """A backend whose bodies are always changed."""

    title = "Mends"

    def prepare(self, chat: Any) -> Any:
        return drop_fields(chat, "user")


def event(chunk: Chunk, **how: Any) -> bytes:
    return sse.frame(json.dumps(chunk, **how).encode())


def stream_of(chunks: list[Chunk], **how: Any) -> bytes:
    return b"".join(event(chunk, **how) for chunk in chunks) + sse.DONE


def with_nulls(chunks: list[Chunk]) -> list[Chunk]:
    return [{**chunk, "usage": chunk.get("usage")} for chunk in chunks]


def recording(served: Served) -> list[RequestRecord]:
    records: list[RequestRecord] = []
    served.gateway.recorder.observers.append(records.append)
    return records


@pytest.mark.proves("I-42")
@pytest.mark.usefixtures("each_way")
@pytest.mark.parametrize(
    "reply", [Reply(), Reply(newline="\r\n"), Reply(bytewise=True), Reply(delay_s=0.002)], ids=str
)
async def test_usage_is_recorded_and_hidden_from_the_caller(
    upstream: FakeUpstream, reply: Reply, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "nexus_gateway")
    upstream.default = reply
    path = tmp_path / "ledger.sqlite3"
    counts = make_instance(upstream, provider=Counts)
    async with serving(counts, ledger=str(path), response_model="upstream") as served:
        status, text, _ = await served.chat(STREAM)
        metrics = await scrape(served)
    async with serving(make_instance(upstream, provider=Counts), stream_usage=False) as served:
        plain = await served.chat({**STREAM, "model": "auto"})
    words = len(reply.contents())
    assert status == 200
    assert text == plain[1].replace("Counts (Key #1)", "fake-model")
    assert read_stream(text).text == reply.text
    assert "usage" not in text
    assert rows(path) == [(7, words)]
    labels = {"provider": "fake", "provider_instance": "Counts (Key #1)"}
    tokens = {
        kind: sample(metrics, "nexus_tokens_total", **labels, gen_ai_token_type=kind)
        for kind in ("input", "output")
    }
    assert tokens == {"input": 7, "output": words}
    requested, plain = (request.raw for request in upstream.requests)
    assert requested.replace(USAGE_OPTION, b"") == plain
    assert requested.count(USAGE_OPTION) == 1


def rows(path: Path) -> list[tuple[object, ...]]:
    connection = sqlite3.connect(path)
    try:
        columns = "prompt_tokens, completion_tokens"
        return connection.execute(f"SELECT {columns} FROM requests ORDER BY rowid").fetchall()
    finally:
        connection.close()


FINISH, USAGE = ANSWER.finish(), ANSWER.usage(7, 9)
FORMS: dict[str, list[Chunk]] = {
    "a chunk of its own": [*TALK, FINISH, USAGE],
    "without choices": [*TALK, FINISH, {k: v for k, v in USAGE.items() if k != "choices"}],
    "with null for choices": [*TALK, FINISH, {**USAGE, "choices": None}],
    "null in all others": with_nulls([*TALK, FINISH, USAGE]),
    "with the finish": with_nulls([*TALK, {**FINISH, "usage": USED}]),
    "in every chunk": [
        {**chunk, "usage": {**USED, "completion_tokens": n}}
        for n, chunk in enumerate([*TALK, FINISH])
    ],
    "and null after it": with_nulls([*TALK, {**FINISH, "usage": USED}, {**TALK[0], "x": {}}]),
    "twice": [*TALK, {**FINISH, "usage": {**USED, "completion_tokens": 1}}, USAGE],
    "within something else": [*TALK, {**FINISH, "x_groq": {"usage": {"queue_time": 1}}}, USAGE],
    "beside a choice": with_nulls([*TALK, FINISH, {**ANSWER.text(""), "usage": USED}]),
}


def ticking(chunks: list[Chunk]) -> list[Chunk]:
    """Return chunks of which no two are similar, so that no template matches."""
    return [{**chunk, "created": n} for n, chunk in enumerate(chunks)]


FORMS |= {f"{form}, ticking": ticking(chunks) for form, chunks in FORMS.items()}


@pytest.mark.proves("I-42")
@pytest.mark.usefixtures("each_way")
@pytest.mark.parametrize("form", FORMS)
async def test_a_burst_is_read_with_usage_in_any_form(upstream: FakeUpstream, form: str) -> None:
    chunks = FORMS[form]
    upstream.default = Reply(body=stream_of(chunks), content_type="text/event-stream")
    counts = make_instance(upstream, provider=Counts)
    async with serving(counts, response_model="upstream") as served:
        records = recording(served)
        _, text, _ = await served.chat(STREAM)
    visible = [chunk for chunk in chunks if chunk.get("choices")]
    assert text.encode() == stream_of(visible)
    (record,) = records
    assert (record.tokens.prompt, record.tokens.completion) == (7, 9)


@pytest.mark.proves("I-42")
@given(
    st.sampled_from(sorted(FORMS)),
    st.integers(0, 40),
    st.lists(st.integers(0, 9000), max_size=30),
    st.sampled_from([{}, {"separators": (",", ":")}]),
)
def test_any_cut_gives_the_same_usage(
    form: str, more: int, places: list[int], how: dict[str, Any]
) -> None:
    chunks = FORMS[form][:2] * more + FORMS[form]
    data = stream_of(chunks, **how)
    passthrough = ChatPassthrough(None, usage_wanted=False)
    out = b"".join(passthrough.feed(piece) for piece in cut(data, places))
    assert out == stream_of([chunk for chunk in chunks if chunk.get("choices")], **how)
    assert {name: passthrough.used()[name] for name in USED} == USED
    assert passthrough.used() == passthrough.used()


@pytest.mark.parametrize("form", FORMS)
def test_chunks_that_name_usage_are_not_examined_each(
    form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    examined: list[bytes] = []
    parse = ChatPassthrough._parse

    def noting(self: ChatPassthrough, text: bytes) -> dict[str, Any]:
        examined.append(text)
        return parse(self, text)

    monkeypatch.setattr(ChatPassthrough, "_parse", noting)
    chunks = [FORMS[form][0], *[FORMS[form][1]] * 500, *FORMS[form][2:]]
    passthrough = ChatPassthrough("Me", usage_wanted=False)
    for chunk in chunks:
        passthrough.feed(event(chunk))
    assert len(examined) <= 8  # of 509
    assert passthrough.used()["completion_tokens"] == 9


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)
NAMES = st.sampled_from(
    ["stream_options", "include_usage", '"stream_options":{}', "}", "{", "model", "stream", "n"]
)
OPTIONS = st.dictionaries(st.sampled_from(["include_usage", "include_obfuscation"]), JSON_VALUES)


@given(
    st.dictionaries(NAMES, JSON_VALUES | NAMES | st.dictionaries(NAMES, NAMES)),
    st.none() | OPTIONS,
    st.sampled_from([None, 1, 4]),
)
def test_only_the_usage_option_is_added(fields: Any, options: Any, indent: int | None) -> None:
    rest = {k: v for k, v in fields.items() if k != "stream_options"}
    all_fields = rest if options is None else {**rest, "stream_options": options}
    body = Body(parse_object(json.dumps(all_fields, indent=indent).encode()), True)
    plain, requested = body.encode("m"), body.encode("m", usage=True)
    if options is None:
        at = len(b'{"model":"m","stream":true')
        assert requested == plain[:at] + USAGE_OPTION + plain[at:]
        assert body.asks_usage is False
    wanted_options = {**(options or {}), "include_usage": True}
    expected = {**json.loads(plain), "stream_options": wanted_options}
    assert json.loads(requested) == expected
    assert body.with_model("m", stream=True, usage=True) == expected
    assert body.with_model("m", stream=True) == json.loads(plain)
    assert body.asks_usage == (bool(options) and options.get("include_usage") is True)


def test_the_last_of_two_fields_counts() -> None:
    options = b'"stream_options": {"include_usage": true}', b'"stream_options": {"a": 1}'
    for first, last in (options, options[::-1]):
        data = b'{"messages": [{"role": "user"}], "stream": true, %b, %b}' % (first, last)
        request = CHAT_COMPLETIONS.parse(data, {})
        assert request.chat is not None
        assert request.lacks_usage == (last is options[1])
        assert request.chat.encode("m", usage=True).count(b"stream_options") == 1


@pytest.mark.parametrize(
    ("options", "sent"),
    [
        ({"include_usage": False}, {"include_usage": True}),
        ({"include_obfuscation": False}, {"include_obfuscation": False, "include_usage": True}),
        (None, {"include_usage": True}),
    ],
)
async def test_the_callers_other_options_stay(
    upstream: FakeUpstream, options: Any, sent: Any
) -> None:
    async with serving(make_instance(upstream, provider=Counts)) as served:
        _, text, _ = await served.chat({**STREAM, "stream_options": options})
    assert upstream.requests[0].body["stream_options"] == sent
    assert '"usage"' not in text


@pytest.mark.parametrize(
    ("provider", "settings", "body"),
    [
        (Fake, {}, STREAM),
        (Counts, {"stream_usage": False}, STREAM),
        (Counts, {}, {**HELLO, "stream": False}),
    ],
    ids=["a provider without stream_usage", "switched off", "no stream"],
)
async def test_usage_is_requested_only_if_needed(
    upstream: FakeUpstream, provider: Any, settings: Any, body: Any
) -> None:
    async with serving(make_instance(upstream, provider=provider), **settings) as served:
        assert (await served.chat(body))[0] == 200
    assert b"stream_options" not in upstream.requests[0].raw


async def test_a_caller_that_requests_usage_gets_it(upstream: FakeUpstream) -> None:
    body = {**STREAM, "stream_options": {"include_usage": True}}
    async with serving(make_instance(upstream, provider=Counts)) as served:
        _, text, _ = await served.chat(body)
    assert upstream.requests[0].raw.count(b"include_usage") == 1
    assert read_stream(text).usage_alone


async def test_a_changed_body_requests_usage_too(upstream: FakeUpstream) -> None:
    async with serving(make_instance(upstream, provider=Changes)) as served:
        records = recording(served)
        await served.chat({**STREAM, "user": "u"})
    sent = upstream.requests[0].body
    assert "user" not in sent
    assert sent["stream_options"] == {"include_usage": True}
    assert records[0].tokens.prompt == 7


@pytest.mark.usefixtures("each_way")
async def test_the_older_completions_request_usage_too(upstream: FakeUpstream) -> None:
    class Older(Counts):
        endpoints = {"completions": "/completions"}

    async with serving(make_instance(upstream, provider=Older, model="m")) as served:
        records = recording(served)
        body = {"prompt": "Hello", "stream": True}
        status, text, _ = await served.post("/v1/completions", body)
    assert (status, "usage" in text) == (200, False)
    assert (
        upstream.requests[0].raw == b'{"model":"m","stream":true%b,"prompt":"Hello"}' % USAGE_OPTION
    )
    assert records[0].tokens.prompt == 7


async def test_a_translated_stream_requests_usage_once(upstream: FakeUpstream) -> None:
    async with serving(make_instance(upstream, provider=Counts)) as served:
        body = {**HELLO, "model": "auto", "max_tokens": 9, "stream": True}
        assert (await served.post("/v1/messages", body))[0] == 200
    assert upstream.requests[0].raw.count(b"include_usage") == 1


@pytest.mark.proves("F49")
@pytest.mark.usefixtures("each_way")
@pytest.mark.parametrize("error", REFUSALS, ids=["azure", "openai", "fastapi"])
async def test_a_backend_that_refuses_the_option_gets_requests_without_it(
    upstream: FakeUpstream, error: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    clock = FakeClock()
    upstream.script(refusal(error))
    counts = make_instance(upstream, provider=Counts, clock=clock)
    async with serving(counts) as served:
        records = recording(served)
        for _ in range(2):
            status, text, headers = await served.chat(STREAM)
            assert (status, read_stream(text).text) == (200, Reply().text)
            assert headers["X-Nexus-Attempts"] == "1"
        assert [b"stream_options" in r.raw for r in upstream.requests] == [True, False, False]
        assert counts.health.success_rate() == 1
        clock.advance(STREAM_USAGE_RETRY_S)
        upstream.script(refusal(error, 422))
        await served.chat(STREAM)
        await served.chat(STREAM)
        has_option = [b"stream_options" in r.raw for r in upstream.requests[3:]]
        assert has_option == [True, False, False]
    assert [record.tokens.prompt for record in records] == [None] * 4
    assert caplog.text.count("refuses `stream_options`") == 1


LATE = Reply(hang=True)
BUSY = Reply(status=429, headers={"Retry-After": "0"})


@pytest.mark.proves("F49")
@pytest.mark.parametrize("second", [LATE, BUSY, Reply(status=500)], ids=["late", "busy", "broken"])
@pytest.mark.parametrize("options", [{}, {"stream_options": {"bad": 1}}], ids=["added", "callers"])
async def test_the_option_is_not_sent_again_even_if_the_second_try_fails(
    upstream: FakeUpstream, second: Reply, options: dict[str, Any]
) -> None:
    upstream.script(refusal(REFUSALS[0]), second)
    counts = make_instance(upstream, provider=Counts)
    limit_ms = 1000 if second is LATE else 60_000
    async with serving(counts, max_attempts=1, response_timeout_ms=limit_ms) as served:
        assert (await served.chat({**STREAM, **options}))[0] in (429, 503)
    assert upstream.hits() == 2
    assert counts.asks_usage is bool(options), "a caller's own options may be what was at fault"


async def test_a_refusal_that_only_quotes_the_field_keeps_the_option(
    upstream: FakeUpstream,
) -> None:
    upstream.default = refusal({"detail": "no such role in {'stream_options': {}, 'messages': 1}"})
    counts = make_instance(upstream, provider=Counts)
    async with serving(counts) as served:
        assert (await served.chat(STREAM))[0] == 400
    assert upstream.hits() == 2
    assert counts.asks_usage


async def test_a_reload_requests_usage_again(upstream: FakeUpstream) -> None:
    counts = make_instance(upstream, provider=Counts)
    assert counts.disable_stream_usage()
    assert not counts.asks_usage
    counts.update_from(make_instance(upstream, provider=Counts))
    assert counts.asks_usage


@pytest.mark.proves("F49")
async def test_a_refusal_of_the_callers_own_options_goes_to_the_caller(
    upstream: FakeUpstream,
) -> None:
    upstream.default = refusal(REFUSALS[0])
    counts = make_instance(upstream, provider=Counts)
    async with serving(counts) as served:
        status, text, _ = await served.chat({**STREAM, "stream_options": {"bad": 1}})
        assert (status, json.loads(text)["error"]["message"]) == (
            400,
            REFUSALS[0]["error"]["message"],
        )
    assert [r.body["stream_options"] for r in upstream.requests] == [
        {"bad": 1, "include_usage": True},
        {"bad": 1},
    ]
    assert counts.asks_usage


@pytest.mark.parametrize(
    ("reply", "body"),
    [
        (Reply(status=400, error={"message": "No such role."}), STREAM),
        (refusal(REFUSALS[0], 500), STREAM),
        (
            refusal(REFUSALS[0]),
            {**STREAM, "stream_options": {"include_usage": True}},
        ),
    ],
    ids=["another fault", "no refusal", "the caller requested it"],
)
async def test_any_other_failure_is_handled_as_usual(
    upstream: FakeUpstream, reply: Reply, body: dict[str, Any]
) -> None:
    upstream.default = reply
    async with serving(make_instance(upstream, provider=Counts), max_attempts=1) as served:
        assert (await served.chat(body))[0] == (503 if reply.status == 500 else 400)
    assert upstream.hits() == 1


async def test_a_resumed_stream_is_counted(upstream: FakeUpstream) -> None:
    upstream.defaults = {
        KEYS[0]: Reply(text="One two three four", delay_s=0.01, cut_after=2),
        KEYS[1]: Reply(text=" three four"),
    }
    counts = [make_instance(upstream, n, provider=Counts) for n in (1, 2)]
    async with serving(*counts, resume=True) as served:
        records = recording(served)
        _, text, _ = await served.chat(STREAM, headers={"X-Routing-Mode": "round-robin"})
    assert read_stream(text).text == "One two three four"
    assert "usage" not in text
    rest = len(Reply(text=" three four").contents())
    assert records[0].tokens.completion == 2 + rest
    assert records[0].tokens.prompt == 7


@pytest.mark.usefixtures("each_way")
async def test_an_instances_speed_excludes_reasoning_tokens(
    upstream: FakeUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted: list[int] = []
    monkeypatch.setattr(Health, "observe_speed", lambda _, tokens, spent_s: counted.append(tokens))
    thinking = {"completion_tokens_details": {"reasoning_tokens": 10_000}}
    used = {**USAGE, "usage": {**USED, "completion_tokens": 10_009, **thinking}}
    body = stream_of([*TALK, FINISH, used])
    upstream.default = Reply(body=body, content_type="text/event-stream")
    async with serving(make_instance(upstream, provider=Counts)) as served:
        await served.chat(STREAM)
    assert counted == [8], "eight after the first, not ten thousand"


async def test_the_official_client_treats_null_usage_as_none(upstream: FakeUpstream) -> None:
    body = stream_of(FORMS["null in all others"])
    upstream.default = Reply(body=body, content_type="text/event-stream")
    async with (
        serving(make_instance(upstream, provider=Counts)) as served,
        openai.AsyncOpenAI(base_url=served.url + "/v1", api_key="k", max_retries=0) as client,
    ):
        stream = await client.chat.completions.create(
            model="auto", messages=HELLO["messages"], stream=True
        )
        parts = [chunk async for chunk in stream]
    assert "".join(part.choices[0].delta.content or "" for part in parts) == "".join(WORDS)
    assert {part.usage for part in parts} == {None}


def test_stream_usage_of_a_plugin_is_true_or_false() -> None:
    class Vague(Fake):
        stream_usage = "sometimes"  # type: ignore[assignment]

    assert [*PROVIDERS.contract_errors(Vague)] == ["its `stream_usage` is neither True nor False"]
