"""Cerebras: https://inference-docs.cerebras.ai. Completions looked up 2026-11-24."""

from nexus_gateway.provider import Model, Provider


class Cerebras(Provider):
    """Cerebras, by its OpenAI-compatible API."""

    title = "Cerebras"
    base_url = "https://api.cerebras.ai/v1"
    default_model = "zai-glm-4.7"
    stream_usage = True  # sent with the finish
    models = (Model("zai-glm-4.7", context=131_072), Model("gpt-oss-120b", context=131_072))
    endpoints = {  # noqa: RUF012 - typed ClassVar in the contract
        "chat": "/chat/completions",
        "completions": "/completions",
    }
