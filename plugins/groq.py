"""Groq: https://console.groq.com/docs/openai. Models looked up 2026-11-30.

It answers 400 to a field that it does not know, in a message as well ("property … is unsupported";
reports of 2026-09, the messages of its client 2026-11-30).
"""

from nexus_gateway.provider import (
    DropFields,
    Effort,
    KnownFields,
    Model,
    Provider,
    Reasoning,
    ToolNames,
    WholeSchemas,
)

# https://console.groq.com/docs/reasoning; other models have none.
_EFFORTS = {
    "openai/gpt-oss-.*": ("low", "medium", "high"),
    "qwen/.*": ("none", "default"),
}
_UNKNOWN = (
    *("metadata", "prompt_cache_key", "prompt_cache_options", "prompt_cache_retention"),
    *("safety_identifier", "store", "verbosity"),
)


class Groq(Provider):
    """Groq, by its OpenAI-compatible API."""

    title = "Groq"
    base_url = "https://api.groq.com/openai/v1"
    default_model = "openai/gpt-oss-120b"
    successors = ("openai/gpt-oss-20b", "qwen/qwen3.8-27b")
    stream_usage = True
    adaptations = (
        DropFields(_UNKNOWN),
        Reasoning("reasoning"),
        KnownFields(also=("reasoning",), without=("audio", "refusal")),
        ToolNames("[a-zA-Z0-9_-]{1,64}", 64),  # its API reference, `tools`
        WholeSchemas(),
        Effort(_EFFORTS),
    )
    models = (
        Model("openai/gpt-oss-120b", context=131_072, max_output=65_536),
        Model("openai/gpt-oss-20b", context=131_072, max_output=65_536),
        Model("qwen/qwen3.8-27b", context=131_072, images=True),
        Model("groq/compound", context=131_072, max_output=8_192),
        Model("groq/compound-mini", context=131_072, max_output=8_192),
        Model("whisper-large-v3-turbo", kind="transcriptions"),
        Model("whisper-large-v3", kind="transcriptions"),
    )
    endpoints = {  # noqa: RUF012 - typed ClassVar in the contract
        "chat": "/chat/completions",
        "transcriptions": "/audio/transcriptions",
    }
