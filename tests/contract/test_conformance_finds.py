"""The conformance suite finds the mistakes that plugins make; each sound plugin here passes it."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

import pytest

from nexus_gateway.provider import (
    Answer,
    Call,
    CallSignatures,
    CannotServe,
    Event,
    HttpRequest,
    InProcess,
    KnownFields,
    Outcome,
    Provider,
    Scope,
    Translator,
    Verdict,
    json_request,
)
from nexus_gateway.testing.conformance import (
    PAGE,
    RETIRED,
    TOO_LARGE,
    InProcessConformance,
    ProviderConformance,
)

Chunk = dict[str, Any]


class Sound(Provider):
    title = "Sound"
    base_url = "https://sound.example/v1"
    default_model = "sound-1"
    successors = ("sound-2",)
    adaptations = (KnownFields(),)


def judging(outcome: Outcome, scope: Scope = Scope.REQUEST) -> type[Provider]:
    """Return a provider that reads the same into every error of a request or a key."""

    class Judges(Sound):
        def read_failure(
            self, status: int, headers: Mapping[str, str], body: bytes
        ) -> Verdict | None:
            return Verdict(outcome, "judged", status, scope=scope) if status < 500 else None

    return Judges


class Restores(Sound):
    def prepare(self, chat: Mapping[str, Any]) -> Mapping[str, Any]:
        return {**chat, "messages": [{"audio": None, **m} for m in chat["messages"]]}


def need_text(chat: Mapping[str, Any]) -> None:
    if any(not isinstance(message["content"], str) for message in chat["messages"]):
        raise CannotServe("Send text.", "messages")


class TakesText(Sound):
    def prepare(self, chat: Mapping[str, Any]) -> Mapping[str, Any]:
        need_text(chat)
        return chat


class AddsTooLate(Sound):
    adaptations = (KnownFields(), CallSignatures(("extra_content", "signature"), "any"))


class AddsInVain(Sound):
    adaptations = (CallSignatures(("extra_content", "signature"), "any"), KnownFields())


class SoundTranslator(Translator):
    title = "Sound"
    base_url = "https://sound.example/v1"
    default_model = "sound-1"
    adaptations = (KnownFields(),)

    def encode(self, call: Call) -> HttpRequest:
        return json_request(call, "/chat/completions", call.chat, self.authorize(call.key))

    async def stream(self, events: AsyncIterator[Event], answer: Answer) -> AsyncIterator[Chunk]:
        async for event in events:
            if event.data.startswith("{"):
                yield self.read(json.loads(event.data))

    def read(self, chunk: Chunk) -> Chunk:
        return chunk


class Copies(SoundTranslator):
    adaptations = ()


class Smuggles(SoundTranslator):
    adaptations = (KnownFields(also=("reasoning_content",)),)

    def encode(self, call: Call) -> HttpRequest:
        marked = [{"cache_control": {"type": "ephemeral"}, **m} for m in call.chat["messages"]]
        return super().encode(Call({**call.chat, "messages": marked}, call.account))


class Swallows(SoundTranslator):
    def read(self, chunk: Chunk) -> Chunk:
        return {"choices": []} if "error" in chunk else chunk


class Summarizes(SoundTranslator):
    def read(self, chunk: Chunk) -> Chunk:
        return {"error": {"message": "Failed."}} if "error" in chunk else chunk


class SoundInProcess(InProcess):
    title = "Sound"
    default_model = "sound-1"

    async def generate(self, call: Call, answer: Answer) -> AsyncIterator[Chunk]:
        yield answer.text(f"Your {len(call.chat['messages'])} messages were read.")
        yield answer.finish()


class InProcessText(SoundInProcess):
    async def generate(self, call: Call, answer: Answer) -> AsyncIterator[Chunk]:
        need_text(call.chat)
        async for chunk in super().generate(call, answer):
            yield chunk


def suite(provider: type[Provider]) -> Any:
    base = InProcessConformance if issubclass(provider, InProcess) else ProviderConformance
    return type("Suite", (base,), {"provider": provider})()


def sound(provider: type[Provider]) -> type[Provider]:
    return next(c for c in (SoundInProcess, SoundTranslator, Sound) if issubclass(provider, c))


BAD_KEY = judging(Outcome.BAD_KEY)
RATE_LIMITED = judging(Outcome.RATE_LIMITED)
REFUSED = judging(Outcome.REFUSED)
FAILURE = judging(Outcome.FAILURE)
MISTAKES: dict[str, tuple[type[Provider], Callable[[Any], Any]]] = {
    "a limit taken for a bad key": (BAD_KEY, lambda s: s.test_rate_limit_of_one_model()),
    "a limit taken for a failure": (FAILURE, lambda s: s.test_rate_limit_of_one_model()),
    "a retired model: bad key": (BAD_KEY, lambda s: s.test_retired_model(RETIRED["400"])),
    "a retired model: limit": (RATE_LIMITED, lambda s: s.test_retired_model(RETIRED["404"])),
    "a retired model: request": (REFUSED, lambda s: s.test_retired_model(RETIRED["400"])),
    "a retired model: failure": (FAILURE, lambda s: s.test_retired_model(RETIRED["404"])),
    "too large: bad key": (BAD_KEY, lambda s: s.test_refusal_of_one_request(TOO_LARGE, 1)),
    "too large: limit": (RATE_LIMITED, lambda s: s.test_refusal_of_one_request(TOO_LARGE, 1)),
    "too large: request": (REFUSED, lambda s: s.test_refusal_of_one_request(TOO_LARGE, 1)),
    "a page: bad key": (BAD_KEY, lambda s: s.test_refusal_of_one_request(PAGE, 2)),
    "a page: limit": (RATE_LIMITED, lambda s: s.test_refusal_of_one_request(PAGE, 2)),
    "a page: request": (REFUSED, lambda s: s.test_refusal_of_one_request(PAGE, 2)),
    "fields put back": (Restores, lambda s: s.test_turns_of_others()),
    "content is not always text": (TakesText, lambda s: s.test_turns_of_others()),
    "a field added too late": (AddsTooLate, lambda s: s.test_turns_of_others()),
    "a field added in vain": (AddsInVain, lambda s: s.test_turns_of_others()),
    "messages copied": (Copies, lambda s: s.test_turns_of_others()),
    "a field not declared": (Smuggles, lambda s: s.test_turns_of_others()),
    "content is not always text, in process": (
        InProcessText,
        lambda s: s.test_turns_of_others(),
    ),
    "an error in a 200: bad key": (BAD_KEY, lambda s: s.test_error_inside_a_200(True)),
    "an error swallowed": (Swallows, lambda s: s.test_error_inside_a_200(True)),
    "an error swallowed, whole": (Swallows, lambda s: s.test_error_inside_a_200(False)),
    "an error without its words": (Summarizes, lambda s: s.test_error_inside_a_200(True)),
}


@pytest.mark.parametrize("mistake", MISTAKES)
async def test_the_suite_finds(mistake: str) -> None:
    provider, run = MISTAKES[mistake]
    await run(suite(sound(provider)))
    with pytest.raises(AssertionError):
        await run(suite(provider))
