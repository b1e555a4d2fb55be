"""OpenRouter: https://openrouter.ai/docs/api-reference. Embeddings looked up 2026-11-24."""

from nexus_gateway.provider import Model, Provider


class OpenRouter(Provider):
    """OpenRouter, by its OpenAI-compatible API."""

    title = "OpenRouter"
    base_url = "https://openrouter.ai/api/v1"
    default_model = "deepseek/deepseek-r1-0528:free"
    stream_usage = True  # sent in any case
    models = (
        Model("deepseek/deepseek-r1-0528:free", context=65_536),
        Model("openai/text-embedding-3-small", context=8_191, kind="embeddings"),
    )
    endpoints = {  # noqa: RUF012 - typed ClassVar in the contract
        "chat": "/chat/completions",
        "embeddings": "/embeddings",
    }
    headers = {"X-Title": "Nexus Gateway"}  # noqa: RUF012 - typed ClassVar in the contract
