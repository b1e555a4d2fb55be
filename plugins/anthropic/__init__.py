"""Anthropic: https://platform.claude.com/docs/en/api/messages. Models looked up 2026-11-30.

- `request`: an OpenAI chat as a Messages request
- `stream`: the events of a Messages stream as OpenAI chunks
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from typing import Any, ClassVar

from nexus_gateway.provider import (
    Answer,
    Call,
    CallIds,
    CannotServe,
    Effort,
    Event,
    HttpRequest,
    KnownFields,
    Model,
    Outcome,
    Secret,
    ToolNames,
    Translator,
    Verdict,
    json_request,
)

from .request import messages_body
from .stream import chunks

MILLION = 1_000_000
# Only the beginning is compared: the rest may quote the caller, and no caller must be able to
# make a key look bad.
_NO_CREDIT = ("Your credit balance is too low", "You have reached your specified")
_SPENT = frozenset({"contract_spend_limit_reached", "enforced_spend_limit_reached"})


class Anthropic(Translator):
    """Claude, by Anthropic's own Messages API.

    Chats are translated; `request` lists what is refused and what is left out. Requests of the
    Messages dialect are sent unchanged.
    """

    title = "Anthropic"
    base_url = "https://api.anthropic.com/v1"
    # The next version, 2026-10-21, refuses `temperature` even for the models that support it.
    headers: ClassVar[Mapping[str, str]] = {"anthropic-version": "2023-06-01"}
    endpoints: ClassVar[Mapping[str, str]] = {
        "messages": "/messages",
        "count_tokens": "/messages/count_tokens",
    }
    adaptations = (
        KnownFields(also=("cache_control",)),
        CallIds("[a-zA-Z0-9_-]+", 24),
        ToolNames("[a-zA-Z0-9_-]{1,128}", 128),
        Effort({}),  # `request` names it, by the model
    )
    default_model = "claude-sonnet-5-5"
    successors = ("claude-sonnet-5", "claude-sonnet-4-6")
    models = (
        Model("claude-sonnet-5-5", context=MILLION, images=True),
        Model("claude-opus-5-5", context=MILLION, images=True),
        Model("claude-haiku-5-5", context=MILLION, images=True),
        Model("claude-fable-5-2", context=MILLION, images=True),
        Model("claude-fable-5-1", context=MILLION, images=True),
        Model("claude-fable-5", context=MILLION, images=True),
        Model("claude-opus-5", context=MILLION, images=True),
        Model("claude-sonnet-5", context=MILLION, images=True),
        Model("claude-opus-4-8", context=MILLION, images=True, max_output=128_000),
        Model("claude-opus-4-7", context=MILLION, images=True, max_output=128_000),
        Model("claude-opus-4-6", context=MILLION, images=True, max_output=128_000),
        Model("claude-sonnet-4-6", context=MILLION, images=True, max_output=128_000),
        Model("claude-haiku-4-5", context=200_000, images=True, max_output=64_000),
    )

    def authorize(self, key: Secret) -> dict[str, str]:
        return {"x-api-key": key.reveal()} if key else {}

    def encode(self, call: Call) -> HttpRequest:
        body = messages_body(call.chat)
        url = self.url(call.account, "messages", call.model)
        headers = self.authorize(call.key)
        try:
            return json_request(call, url, body, headers)
        except ValueError:
            # The gateway has checked the body, but not the arguments, which are JSON within JSON.
            message = "The arguments of a tool call contain values that have no JSON form."
            raise CannotServe(message, "messages") from None

    def stream(self, events: AsyncIterator[Event], answer: Answer) -> AsyncIterator[dict[str, Any]]:
        return chunks(events, answer)

    def read_failure(self, status: int, headers: Mapping[str, str], body: bytes) -> Verdict | None:
        """Recognise an account without credit, which is a 400 or a 429 here."""
        error = _error(body)
        message, details = error.get("message"), error.get("details")
        no_credit = status == 400 and isinstance(message, str) and message.startswith(_NO_CREDIT)
        spent = isinstance(details, dict) and str(details.get("error_code")) in _SPENT
        if no_credit or spent:
            return Verdict(Outcome.BAD_KEY, "the account has no credit", status)
        return None


def _error(body: bytes) -> Mapping[str, Any]:
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    error = value.get("error") if isinstance(value, dict) else None
    return error if isinstance(error, dict) else {}
