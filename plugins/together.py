"""Together AI: https://docs.together.ai/reference. Looked up 2026-11-24."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nexus_gateway.provider import Model, Provider, rename_fields


class Together(Provider):
    """Together AI, by its OpenAI-compatible API."""

    title = "Together"
    base_url = "https://api.together.xyz/v1"
    default_model = "deepseek-ai/DeepSeek-V4.1-Flash"
    successors = ("zai-org/GLM-5.3-Flash", "openai/gpt-oss-120b")
    stream_usage = True
    models = (
        Model("deepseek-ai/DeepSeek-V4.1-Flash", context=1_048_576),
        Model("openai/gpt-oss-120b", context=131_072),
        Model("zai-org/GLM-5.3-Flash", context=1_048_575, images=True),
        Model("moonshotai/Kimi-K3", context=1_048_576, images=True),
        Model("BAAI/bge-base-en-v1.5", context=512, kind="embeddings"),
        Model("BAAI/bge-large-en-v1.5", context=512, kind="embeddings"),
        Model("openai/whisper-large-v3", kind="transcriptions"),
    )
    endpoints = {  # noqa: RUF012 - typed ClassVar in the contract
        "chat": "/chat/completions",
        "completions": "/completions",
        "embeddings": "/embeddings",
        "transcriptions": "/audio/transcriptions",
    }

    def prepare(self, chat: Mapping[str, Any]) -> Mapping[str, Any]:
        """Use the only name of `max_tokens` that Together knows."""
        return rename_fields(chat, max_completion_tokens="max_tokens")
