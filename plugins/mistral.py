"""Mistral: https://docs.mistral.ai/api. Looked up 2026-11-24, its messages 2026-11-30."""

from __future__ import annotations

from collections.abc import Mapping

from nexus_gateway.provider import (
    CallIds,
    DropFields,
    Effort,
    KnownFields,
    Model,
    Outcome,
    Provider,
    RenameFields,
    RenameRoles,
    ToolNames,
    Verdict,
)

# It sends the usage of a stream unasked.
_UNKNOWN = (
    *("logit_bias", "prompt_cache_key", "prompt_cache_options", "prompt_cache_retention"),
    *("safety_identifier", "service_tier", "store", "stream_options", "user", "verbosity"),
)
# https://docs.mistral.ai/inference/conversations/reasoning, 2026-11-30; others have none.
_EFFORTS = {
    "mistral-(small|medium)-.*": ("none", "high"),
    "mistral-large-4-.*": ("low", "medium", "high"),
}


class Mistral(Provider):
    """Mistral, by its API, which is OpenAI's but refuses unknown fields."""

    title = "Mistral"
    base_url = "https://api.mistral.ai/v1"
    default_model = "mistral-medium-latest"
    successors = ("mistral-small-latest", "mistral-large-latest")
    adaptations = (
        RenameFields({"max_completion_tokens": "max_tokens", "seed": "random_seed"}),
        DropFields(_UNKNOWN),
        RenameRoles({"developer": "system"}),
        KnownFields(
            also=("prefix", "thinking"), without=("audio", "function_call", "name", "refusal")
        ),
        CallIds("[a-zA-Z0-9]{9}", 9),
        ToolNames("[a-zA-Z0-9_-]{1,64}", 64),  # its OpenAPI document
        Effort(_EFFORTS),
    )
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

    def read_failure(self, status: int, headers: Mapping[str, str], body: bytes) -> Verdict | None:
        """Recognise a key without any quota; other 429s are from a quota that is used up."""
        if status == 429 and headers.get("x-ratelimit-limit-req-minute") == "0":
            return Verdict(Outcome.BAD_KEY, "the key has no quota", status)
        return None
