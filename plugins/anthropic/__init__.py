"""Anthropic: https://platform.claude.com/docs/en/api/messages."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from typing import Any, ClassVar

from nexus_gateway.provider import (
    Answer,
    Call,
    CannotServe,
    Event,
    HttpRequest,
    Model,
    Outcome,
    Secret,
    Translator,
    Verdict,
    json_request,
)

from .request import messages_body
from .stream import chunks

MILLION = 1_000_000
# Beginnings only: further on, a message may quote what a caller wrote, and no caller shall
# be able to have a key set aside.
_NO_CREDIT = ("Your credit balance is too low", "You have reached your specified")
_SPENT = frozenset({"contract_spend_limit_reached", "enforced_spend_limit_reached"})


class Anthropic(Translator):
    """Claude, by Anthropic's own Messages API.

    What has no counterpart there is either refused (`request` says what) or, where
    it is only a hint, left out. Requests that are Messages already pass as they are.
    """

    title = "Anthropic"
    base_url = "https://api.anthropic.com/v1"
    # The next version, 2026-10-21, takes temperature from no model, not even from those that
    # still heed it.
    headers: ClassVar[Mapping[str, str]] = {"anthropic-version": "2023-06-01"}
    endpoints: ClassVar[Mapping[str, str]] = {
        "messages": "/messages",
        "count_tokens": "/messages/count_tokens",
    }
    default_model = "claude-sonnet-5-5"
    models = (
        Model("claude-sonnet-5-5", context=MILLION, images=True),
        Model("claude-opus-5-5", context=MILLION, images=True),
        Model("claude-haiku-5-5", context=MILLION, images=True),
        Model("claude-fable-5-2", context=MILLION, images=True),
        Model("claude-fable-5-1", context=MILLION, images=True),
        Model("claude-fable-5", context=MILLION, images=True),
        Model("claude-opus-5", context=MILLION, images=True),
        Model("claude-sonnet-5", context=MILLION, images=True),
        Model("claude-opus-4-8", context=MILLION, images=True),
        Model("claude-opus-4-7", context=MILLION, images=True),
        Model("claude-opus-4-6", context=MILLION, images=True),
        Model("claude-sonnet-4-6", context=MILLION, images=True),
        Model("claude-haiku-4-5", context=200_000, images=True),
    )

    def authorize(self, key: Secret) -> dict[str, str]:
        """Return the header that carries the key."""
        return {"x-api-key": key.reveal()} if key else {}

    def encode(self, call: Call) -> HttpRequest:
        """Make the request for a chat.

        Raises:
            CannotServe: the chat asks for what Anthropic lacks, or is malformed.
        """
        body = messages_body(call.chat)
        url = self.url(call.account, "messages", call.model)
        headers = self.authorize(call.key)
        try:
            return json_request(call, url, body, headers)
        except ValueError:
            # The rest of the body was sendable when it came in; arguments are JSON within JSON.
            message = "The arguments of a tool call hold what JSON cannot carry."
            raise CannotServe(message, "messages") from None

    def stream(self, events: AsyncIterator[Event], answer: Answer) -> AsyncIterator[dict[str, Any]]:
        """Turn the events of a Messages stream into chunks."""
        return chunks(events, answer)

    def read_failure(self, status: int, headers: Mapping[str, str], body: bytes) -> Verdict | None:
        """Tell an account without credit, which is a 400 or a 429 here, from other failures."""
        error = _error(body)
        message, details = error.get("message"), error.get("details")
        poor = status == 400 and isinstance(message, str) and message.startswith(_NO_CREDIT)
        spent = isinstance(details, dict) and str(details.get("error_code")) in _SPENT
        if poor or spent:
            return Verdict(Outcome.BAD_KEY, "the account has no credit", status)
        return None


def _error(body: bytes) -> Mapping[str, Any]:
    """Return the error of an error body, empty where it has none."""
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    error = value.get("error") if isinstance(value, dict) else None
    return error if isinstance(error, dict) else {}
