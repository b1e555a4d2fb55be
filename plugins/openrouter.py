"""OpenRouter: https://openrouter.ai/docs/api-reference/overview."""

from nexus_gateway.provider import Model, Provider


class OpenRouter(Provider):
    """OpenRouter, by its OpenAI-compatible API."""

    title = "OpenRouter"
    base_url = "https://openrouter.ai/api/v1"
    default_model = "deepseek/deepseek-r1-0528:free"
    models = (Model("deepseek/deepseek-r1-0528:free", context=65_536),)
    headers = {"X-Title": "Nexus Gateway"}  # noqa: RUF012 - typed ClassVar in the contract
