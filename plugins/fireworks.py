"""Fireworks AI: https://docs.fireworks.ai/api-reference. Looked up 2026-11-24."""

from __future__ import annotations

from collections.abc import Mapping

from nexus_gateway.provider import (
    Effort,
    KnownFields,
    Model,
    Outcome,
    Provider,
    Reasoning,
    SystemFirst,
    ToolNames,
    Verdict,
)

_PREFIX = "accounts/fireworks/models/"


class Fireworks(Provider):
    """Fireworks AI, by its OpenAI-compatible API."""

    title = "Fireworks"
    base_url = "https://api.fireworks.ai/inference/v1"
    default_model = _PREFIX + "deepseek-v4p1-flash"
    successors = (_PREFIX + "glm-5p3-flash", _PREFIX + "gpt-oss-120b")
    stream_usage = True
    # https://docs.fireworks.ai/guides/reasoning; templates that accept a system message only at the
    # beginning: reports of 2026-09. Looked up 2026-11-30.
    adaptations = (
        Reasoning(),
        KnownFields(also=("reasoning_content",)),
        SystemFirst(),
        ToolNames("[a-zA-Z0-9_-]{1,64}", 64),
        Effort({".*": ("none", "low", "medium", "high", "xhigh", "max")}),
    )
    models = (
        Model(_PREFIX + "deepseek-v4p1-flash", context=1_048_576, images=True),
        Model(_PREFIX + "glm-5p3-flash", context=1_048_576, images=True),
        Model(_PREFIX + "kimi-k3", context=1_048_576, images=True),
        Model(_PREFIX + "gpt-oss-120b", context=131_072),
        Model(_PREFIX + "qwen3-embedding-8b", context=40_960, kind="embeddings"),
        Model("nomic-ai/nomic-embed-text-v1.5", context=8_192, kind="embeddings"),
    )
    endpoints = {  # noqa: RUF012 - typed ClassVar in the contract
        "chat": "/chat/completions",
        "completions": "/completions",
        "embeddings": "/embeddings",
    }

    def read_failure(self, status: int, headers: Mapping[str, str], body: bytes) -> Verdict | None:
        """Recognise an account that is suspended for unpaid bills, which is a 412 here."""
        if status == 412:
            return Verdict(Outcome.BAD_KEY, "the account is suspended (412)", status)
        return None
