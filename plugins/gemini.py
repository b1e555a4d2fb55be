"""Gemini: https://ai.google.dev/gemini-api/docs/openai. Models looked up 2026-11-30.

It answers 400 to a name that it does not know ("Unknown name … Cannot find field", reports of
2026-08, looked up 2026-11-30). Gemini 3 signs its tool calls and refuses calls without signature;
for those that it did not make itself Google documents a placeholder
(https://ai.google.dev/gemini-api/docs/thought-signatures, 2026-11-30).
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from nexus_gateway.provider import (
    CallSignatures,
    DropFields,
    Effort,
    KnownFields,
    Model,
    Outcome,
    Provider,
    ToolNames,
    Verdict,
)

_UNKNOWN = (
    *("frequency_penalty", "logit_bias", "metadata", "prediction", "prompt_cache_key"),
    *("prompt_cache_options", "prompt_cache_retention", "safety_identifier", "seed"),
    *("service_tier", "store", "user", "verbosity"),
)
_SIGNATURE = ("extra_content", "google", "thought_signature")
# https://ai.google.dev/gemini-api/docs/openai#thinking: only these can be told not to reason.
_MINIMAL_TO_HIGH = ("minimal", "low", "medium", "high")
_EFFORTS = {r"gemini-2\.5-flash.*": ("none", *_MINIMAL_TO_HIGH), ".*": _MINIMAL_TO_HIGH}

_WRONG_KEY = re.compile(rb'"reason"\s*:\s*"API_KEY_INVALID"')


class Gemini(Provider):
    """Google Gemini, by its OpenAI-compatible API: the key is sent in a header, never in a URL."""

    title = "Gemini"
    base_url = "https://generativelanguage.googleapis.com/v1beta/openai"
    # Google's replacement of gemini-2.5-flash, at the same price.
    default_model = "gemini-3.5-flash-lite"
    successors = ("gemini-3.8-flash", "gemini-3.6-flash")
    stream_usage = True  # sent in every event, as counted so far
    adaptations = (
        DropFields(_UNKNOWN),
        CallSignatures(_SIGNATURE, "skip_thought_signature_validator"),
        KnownFields(also=("extra_content",), without=("audio", "function_call", "refusal")),
        # https://ai.google.dev/api/caching#FunctionDeclaration
        ToolNames("[a-zA-Z_][a-zA-Z0-9_-]{0,63}", 64),
        Effort(_EFFORTS),
    )
    models = (
        Model("gemini-3.5-flash-lite", context=1_048_576, images=True),
        Model("gemini-3.8-flash", context=1_048_576, images=True),
        Model("gemini-3.6-flash", context=1_048_576, images=True),
        Model("gemini-embedding-001", context=2_048, kind="embeddings"),
    )
    endpoints = {  # noqa: RUF012 - typed ClassVar in the contract
        "chat": "/chat/completions",
        "embeddings": "/embeddings",
    }

    def read_failure(self, status: int, headers: Mapping[str, str], body: bytes) -> Verdict | None:
        """Recognise an invalid key by its reason: it is a 400 here instead of a 401."""
        if status == 400 and _WRONG_KEY.search(body):
            return Verdict(Outcome.BAD_KEY, "the key was refused (400)", status)
        return None
