"""OpenAI: https://developers.openai.com/api/reference. Looked up 2026-11-30."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nexus_gateway.provider import (
    CallIds,
    Effort,
    KnownFields,
    Model,
    Provider,
    RenameFields,
    ToolNames,
    WholeSchemas,
)

# https://developers.openai.com/api/docs/guides/reasoning and the pages of the models, 2026-11-30.
_UP_TO_HIGH = ("low", "medium", "high")
_EFFORTS = {
    r"o\d.*|gpt-5-codex.*|gpt-5\.1-codex(-mini)?": _UP_TO_HIGH,
    r"gpt-5-pro.*": ("high",),
    r"gpt-5\.\d-pro.*": ("medium", "high", "xhigh"),
    r"gpt-5(\.\d)?-chat.*": ("medium",),
    r"gpt-5(-mini|-nano)?(-\d.*)?": ("minimal", *_UP_TO_HIGH),
    r"gpt-5\.1(-\d.*)?": ("none", *_UP_TO_HIGH),
    r"gpt-5\.\d-codex.*": (*_UP_TO_HIGH, "xhigh"),
    r"gpt-5\.[2-5].*": ("none", *_UP_TO_HIGH, "xhigh"),
    r"gpt-([6-9]|5\.).*": ("none", *_UP_TO_HIGH, "xhigh", "max"),
}
# These reason by default, and refuse tools on chat completions unless reasoning is off.
_NO_TOOLS_WITH_REASONING = ("gpt-5.6", "gpt-6-sol", "gpt-6-luna", "gpt-6.1-terra")


class OpenAI(Provider):
    """OpenAI itself."""

    title = "OpenAI"
    base_url = "https://api.openai.com/v1"
    default_model = "gpt-6.1-terra"
    successors = ("gpt-6-luna", "gpt-6-sol")
    stream_usage = True
    adaptations = (
        RenameFields({"max_tokens": "max_completion_tokens"}),  # reasoning models know only that
        KnownFields(),
        CallIds(".{1,40}", 40),
        ToolNames("[a-zA-Z0-9_-]{1,64}", 64),  # API reference, "Create chat completion"
        WholeSchemas(),
        Effort(_EFFORTS),
    )
    models = (
        Model("gpt-6.1-terra", context=1_050_000, images=True),
        Model("gpt-6-luna", context=1_050_000, images=True),
        Model("gpt-6-sol", context=1_050_000, images=True),
        Model("gpt-6.2-sol", context=1_050_000, images=True),
        Model("gpt-5.4-mini", context=400_000, images=True),
        Model("text-embedding-3-small", context=8_191, kind="embeddings"),
        Model("text-embedding-3-large", context=8_191, kind="embeddings"),
        Model("gpt-transcribe", kind="transcriptions"),
        # Both end on 2027-02-26.
        Model("gpt-4o-transcribe", kind="transcriptions"),
        Model("whisper-1", kind="transcriptions"),
    )
    endpoints = {  # noqa: RUF012 - typed ClassVar in the contract
        "chat": "/chat/completions",
        "embeddings": "/embeddings",
        "transcriptions": "/audio/transcriptions",
        "responses": "/responses",
    }

    def prepare(self, chat: Mapping[str, Any]) -> Mapping[str, Any]:
        """Turn reasoning off, whatever effort is asked for, if it would forbid the tools."""
        reasons = str(chat["model"]).startswith(_NO_TOOLS_WITH_REASONING)
        if reasons and chat.get("tools") and chat.get("reasoning_effort") != "none":
            return {**chat, "reasoning_effort": "none"}
        return chat
