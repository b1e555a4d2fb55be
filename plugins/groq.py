"""Groq: https://console.groq.com/docs/openai."""

from nexus_gateway.provider import Model, Provider


class Groq(Provider):
    """Groq, by its OpenAI-compatible API."""

    title = "Groq"
    base_url = "https://api.groq.com/openai/v1"
    default_model = "llama-4-scout-17b-16e-instruct"
    models = (
        Model("llama-4-scout-17b-16e-instruct", context=10_000_000, images=True),
        Model("llama-4-maverick", context=1_000_000, images=True),
    )
