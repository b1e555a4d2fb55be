"""Mistral: https://docs.mistral.ai/api. Looked up 2026-11-24."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nexus_gateway.provider import (
    Model,
    Outcome,
    Provider,
    Verdict,
    drop_fields,
    rename_fields,
    rename_roles,
)

_UNKNOWN = ("logit_bias", "service_tier", "store", "stream_options", "user")


class Mistral(Provider):
    """Mistral, by its API, which is OpenAI's but refuses unknown fields."""

    title = "Mistral"
    base_url = "https://api.mistral.ai/v1"
    default_model = "mistral-medium-latest"
    successors = ("mistral-small-latest", "mistral-large-latest")
    models = (
        Model("mistral-medium-latest", context=262_144, images=True),
        Model("mistral-large-latest", context=262_144, images=True),
        Model("mistral-small-latest", context=262_144, images=True),
        Model("codestral-latest", context=128_000),
        Model("mistral-embed", context=8_192, kind="embeddings"),
        Model("codestral-embed", context=8_192, kind="embeddings"),
        Model("voxtral-mini-latest", kind="transcriptions"),
    )
    endpoints = {  # noqa: RUF012 - typed ClassVar in the contract
        "chat": "/chat/completions",
        "embeddings": "/embeddings",
        "transcriptions": "/audio/transcriptions",
    }

    def prepare(self, chat: Mapping[str, Any]) -> Mapping[str, Any]:
        """Use Mistral's names, and drop hints that it refuses; it sends usage without a request."""
        named = rename_fields(chat, max_completion_tokens="max_tokens", seed="random_seed")
        return rename_roles(drop_fields(named, *_UNKNOWN), developer="system")

    def read_failure(self, status: int, headers: Mapping[str, str], body: bytes) -> Verdict | None:
        """Recognise a key without any quota; other 429s are from a quota that is used up."""
        if status == 429 and headers.get("x-ratelimit-limit-req-minute") == "0":
            return Verdict(Outcome.BAD_KEY, "the key has no quota", status)
        return None
