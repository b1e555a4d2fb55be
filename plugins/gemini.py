"""Gemini: https://ai.google.dev/gemini-api/docs/openai."""

from nexus_gateway.provider import Model, Provider


class Gemini(Provider):
    """Google Gemini, by its OpenAI-compatible API: the key travels in a header, never in a URL."""

    title = "Gemini"
    base_url = "https://generativelanguage.googleapis.com/v1beta/openai"
    default_model = "gemini-2.5-flash"
    models = (
        Model("gemini-2.5-flash", context=1_000_000, images=True),
        Model("gemini-3-flash-preview", context=1_000_000, images=True),
    )
