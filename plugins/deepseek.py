"""DeepSeek: https://api-docs.deepseek.com. Looked up 2026-11-30."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nexus_gateway.provider import Model, Provider, rename_fields, rename_roles


class DeepSeek(Provider):
    """DeepSeek, by its OpenAI-compatible API."""

    title = "DeepSeek"
    base_url = "https://api.deepseek.com"
    default_model = "deepseek-flash"
    successors = ("deepseek-v4-pro",)
    stream_usage = True  # sent with the finish
    models = (
        Model("deepseek-flash", context=1_000_000, images=True),
        Model("deepseek-v4-pro", context=1_000_000),
    )

    def prepare(self, chat: Mapping[str, Any]) -> Mapping[str, Any]:
        """Use the name of `max_tokens` that DeepSeek does not ignore, and a role that it knows."""
        named = rename_fields(chat, max_completion_tokens="max_tokens")
        return rename_roles(named, developer="system")
