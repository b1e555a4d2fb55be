"""Groq: https://console.groq.com/docs/openai. Transcriptions looked up 2026-11-24."""

from nexus_gateway.provider import Model, Provider


class Groq(Provider):
    """Groq, by its OpenAI-compatible API."""

    title = "Groq"
    base_url = "https://api.groq.com/openai/v1"
    default_model = "llama-4-scout-17b-16e-instruct"
    stream_usage = True
    models = (
        Model("llama-4-scout-17b-16e-instruct", context=10_000_000, images=True),
        Model("llama-4-maverick", context=1_000_000, images=True),
        Model("openai/gpt-oss-120b", context=131_072),
        Model("whisper-large-v3-turbo", kind="transcriptions"),
        Model("whisper-large-v3", kind="transcriptions"),
    )
    endpoints = {  # noqa: RUF012 - typed ClassVar in the contract
        "chat": "/chat/completions",
        "transcriptions": "/audio/transcriptions",
    }
