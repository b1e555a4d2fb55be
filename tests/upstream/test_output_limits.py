"""Backends that refuse a request for the length of its answer, and name the longest."""

from __future__ import annotations

from importlib import metadata
from typing import Any

import pytest
from fakes import HELLO, Fake, make_instance, serving
from hypothesis import given
from hypothesis import strategies as st

from nexus_gateway.provider import Provider
from nexus_gateway.testing.reply import Reply
from nexus_gateway.testing.upstream import FakeUpstream
from nexus_gateway.upstream.meanings import OutputLimit, output_limit
from nexus_gateway.wire.error_objects import normalise_error

GROQ = (
    "`max_tokens` must be less than or equal to `8192`, the maximum value for `max_tokens` is less "
    "than the `context_window` for this model"
)
OPENAI = (
    "max_tokens is too large: 32000. This model supports at most 16384 completion tokens, whereas "
    "you provided 32000."
)
ANTHROPIC = (
    "max_tokens: 32000 > 8192, which is the maximum allowed number of output tokens for claude-3"
)
VLLM = (
    "'max_tokens' or 'max_completion_tokens' is too large: 32000. This model's maximum context "
    "length is 8192 tokens and your request has 26 input tokens (32000 > 8192 - 26)."
)
WINDOW = "This model's maximum context length is 8192 tokens."
PROMPT_TOO_LONG = (
    f"{WINDOW} However, you requested 41000 tokens (9000 "
    "in the messages, 32000 in the completion). Please reduce the length of the messages or "
    "completion."
)
OF_MODEL = {
    GROQ: 8192,
    OPENAI: 16_384,
    ANTHROPIC: 8192,
    "Invalid 'max_tokens': integer above maximum value. Expected a value <= 4096.": 4096,
    "Invalid max_tokens value, the valid range of max_tokens is [1, 8192]": 8192,
    "Range of max_tokens should be [1, 8192]": 8192,
    "Unable to submit request because it has a maxOutputTokens value of 128000 but the supported "
    "range is from 1 (inclusive) to 65537 (exclusive). Update the value and try again.": 65_536,
    "max_output_tokens must be less than or equal to 8192": 8192,
}
OF_REQUEST = {
    VLLM: 8166,
    f"{WINDOW} However, you requested 32026 tokens (20 in the messages, 6 in the functions, 32000 "
    "in the completion). Please reduce the length.": 8166,
    f"{WINDOW} However, you requested 32000 output tokens and your prompt contains at least 26 "
    "input tokens, for a total of at least 32026 tokens.": 8166,
    "Requested token count exceeds the model's maximum context length of 8192 tokens. You "
    "requested a total of 32026 tokens: 26 tokens from the input messages and 32000 tokens for the "
    "completion.": 8166,
    "This endpoint's maximum context length is 131072 tokens. However, you requested about 140011 "
    "tokens (11 of text input, 140000 in the output). Please reduce the length of either one.": (
        131_061
    ),
    "`inputs` tokens + `max_new_tokens` must be <= 8193. Given: 26 `inputs` tokens and 32000 "
    "`max_new_tokens`": 8167,
    "input length and `max_tokens` exceed context limit: 190000 + 32000 > 200000, decrease input "
    "length or `max_tokens` and try again": 10_000,
    # It may quote a caller who wants to shorten the answers of others.
    "Invalid user: max_tokens must be less than or equal to 300": 300,
}
NO_LIMITS = [
    PROMPT_TOO_LONG,
    "This model's maximum context length is 8192 tokens. However, your messages resulted in 9000 "
    "tokens. Please reduce the length of the messages.",
    "prompt is too long: 210000 tokens > 200000 maximum",
    "This model's maximum context length is 8192 tokens. However, you requested 32100 tokens (8100 "
    "in the messages, 24000 in the completion).",
    "the request (9000 tokens) exceeds the available context size (8192 tokens)",
    "temperature must be less than or equal to 2",
    "max_tokens must be less than or equal to 2",
    "max_tokens must be a number",
    "Requests with max_tokens > 4096 must have stream=true",
    "",
]


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        *((text, OutputLimit(tokens, True)) for text, tokens in OF_MODEL.items()),
        *((text, OutputLimit(tokens, False)) for text, tokens in OF_REQUEST.items()),
        *((text, None) for text in NO_LIMITS),
    ],
)
def test_a_refusal_names_the_longest_answer(message: str, expected: OutputLimit | None) -> None:
    assert output_limit(normalise_error({"message": message})) == expected


def test_a_fault_names_its_field_elsewhere() -> None:
    message = {"message": "Input should be less than or equal to 8192"}
    assert output_limit(normalise_error(message)) is None
    for where in ({"param": "max_tokens"}, {"detail": [{"loc": ["body", "max_tokens"]}]}):
        assert output_limit(normalise_error({**message, **where})) == OutputLimit(8192, False)


@given(st.lists(st.sampled_from([*OF_MODEL, *OF_REQUEST, "1", " + ", " > ", "tokens"]) | st.text()))
def test_any_words_are_read(words: list[str]) -> None:
    limit = output_limit(normalise_error({"message": "".join(words)}))
    assert limit is None or limit.tokens > 0


class Limited(FakeUpstream):
    """Refuses answers that are longer than its limit, in some words."""

    def __init__(self, message: str, limit: int) -> None:
        super().__init__()
        self._message = message
        self._limit = limit

    def _reply_to(self, request: Any, received: Any) -> Reply:
        reply = super()._reply_to(request, received)
        if asked(received.body) <= self._limit:
            return reply
        return Reply(status=400, error={"message": self._message, "type": "invalid_request_error"})


def asked(body: dict[str, Any]) -> int:
    lengths = ("max_tokens", "max_completion_tokens", "max_output_tokens")
    return max((body[name] for name in lengths if name in body), default=0)


class Native(Fake):
    endpoints = {"responses": "/responses"}


TRANSLATOR: type[Provider] = metadata.entry_points(group="nexus_gateway.providers")[
    "anthropic"
].load()
WAYS: dict[str, tuple[type[Provider], str, dict[str, Any]]] = {
    "chat": (Fake, "/v1/chat/completions", {**HELLO, "max_tokens": 32_000}),
    "newer": (Fake, "/v1/chat/completions", {**HELLO, "max_completion_tokens": 32_000}),
    "messages": (Fake, "/v1/messages", {**HELLO, "max_tokens": 128_000}),
    "responses": (Fake, "/v1/responses", {"input": "Hi", "max_output_tokens": 32_000}),
    "native-messages": (TRANSLATOR, "/v1/messages", {**HELLO, "max_tokens": 128_000}),
    "native-responses": (Native, "/v1/responses", {"input": "Hi", "max_output_tokens": 32_000}),
    "translated": (TRANSLATOR, "/v1/chat/completions", {**HELLO, "max_tokens": 32_000}),
}
each_way_to_ask = pytest.mark.parametrize("way", WAYS)
both = pytest.mark.parametrize("stream", [True, False], ids=["stream", "complete"])


@both
@each_way_to_ask
@pytest.mark.parametrize(
    ("message", "limit", "lasts"),
    [(GROQ, 8192, True), (OPENAI, 16_384, True), (ANTHROPIC, 8192, True), (VLLM, 8166, False)],
    ids=["groq", "openai", "anthropic", "vllm"],
)
@pytest.mark.proves("F63")
async def test_an_answer_that_is_too_long_is_asked_for_once_more(
    way: str, stream: bool, message: str, limit: int, lasts: bool
) -> None:
    provider, path, body = WAYS[way]
    async with (
        Limited(message, limit) as upstream,
        serving(make_instance(upstream, provider=provider)) as served,
    ):
        for _ in range(2):
            status, text, headers = await served.post(path, {**body, "stream": stream})
            assert (status, headers["X-Nexus-Attempts"]) == (200, "1"), text
        (instance,) = served.instances
        assert instance.health.success_rate() == 1
    lengths = [asked(received.body) for received in upstream.requests]
    first = asked(body)
    assert lengths == ([first, limit, limit] if lasts else [first, limit] * 2)


@both
async def test_a_prompt_that_is_too_long_is_not_asked_again(stream: bool) -> None:
    async with (
        Limited(PROMPT_TOO_LONG, 0) as upstream,
        serving(make_instance(upstream)) as served,
    ):
        body = {**HELLO, "max_tokens": 32_000, "stream": stream}
        status, text, _ = await served.chat(body)
    assert (status, upstream.hits()) == (400, 1)
    assert "9000 in the messages" in text


@both
async def test_a_backend_that_refuses_its_own_limit_is_asked_twice(stream: bool) -> None:
    async with Limited(GROQ, 100) as upstream, serving(make_instance(upstream)) as served:
        body = {**HELLO, "max_tokens": 32_000, "stream": stream}
        assert (await served.chat(body))[0] == 400
        assert upstream.hits() == 2
        assert (await served.chat({**body, "max_tokens": 8192}))[0] == 400
    assert upstream.hits() == 3


async def test_a_limit_is_of_one_model(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    async with Limited(GROQ, 8192) as upstream, serving(make_instance(upstream)) as served:
        for model in ("fake-large", "fake-small"):
            body = {**HELLO, "model": model, "max_tokens": 32_000, "stream": False}
            assert (await served.chat(body))[0] == 200
    assert [asked(received.body) for received in upstream.requests] == [32_000, 8192] * 2
    assert "Fake (Key #1) answers in at most 8192 tokens" in caplog.text
