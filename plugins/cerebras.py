"""Cerebras: https://inference-docs.cerebras.ai. Models looked up 2026-11-30.

It answers 400 to a field that it does not know, in a message as well (`wrong_api_format`), and to a
system message that is not the first (reports of 2026-09, looked up 2026-11-30).
"""

from nexus_gateway.provider import (
    DropFields,
    Effort,
    KnownFields,
    Model,
    Provider,
    Reasoning,
    SystemFirst,
    ToolNames,
    WholeSchemas,
)

_UNKNOWN = (
    *("frequency_penalty", "logit_bias", "metadata", "presence_penalty", "prompt_cache_key"),
    *("prompt_cache_options", "prompt_cache_retention", "safety_identifier", "store", "verbosity"),
)
# https://inference-docs.cerebras.ai/capabilities/reasoning, 2026-11-30.
_EFFORTS = {
    "gpt-oss-.*": ("low", "medium", "high"),
    "qwen-.*": ("none", "low", "medium", "high"),
}


class Cerebras(Provider):
    """Cerebras, by its OpenAI-compatible API."""

    title = "Cerebras"
    base_url = "https://api.cerebras.ai/v1"
    default_model = "gpt-oss-120b"
    successors = ("qwen-3.8-27b",)
    stream_usage = True  # sent with the finish
    adaptations = (
        DropFields(_UNKNOWN),
        Reasoning("reasoning"),
        KnownFields(also=("reasoning",), without=("audio", "function_call", "refusal")),
        SystemFirst(),
        ToolNames("[a-zA-Z0-9_-]{1,64}", 64),  # its API reference, `tools`
        WholeSchemas(),
        Effort(_EFFORTS),
    )
    models = (
        Model("gpt-oss-120b", context=131_072),
        Model("qwen-3.8-27b", context=131_072, images=True),
    )
    endpoints = {  # noqa: RUF012 - typed ClassVar in the contract
        "chat": "/chat/completions",
        "completions": "/completions",
    }
