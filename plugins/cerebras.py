"""Cerebras: https://inference-docs.cerebras.ai. Models looked up 2026-11-30."""

from nexus_gateway.provider import Model, Provider


class Cerebras(Provider):
    """Cerebras, by its OpenAI-compatible API."""

    title = "Cerebras"
    base_url = "https://api.cerebras.ai/v1"
    default_model = "gpt-oss-120b"
    successors = ("qwen-3.8-27b",)
    stream_usage = True  # sent with the finish
    models = (
        Model("gpt-oss-120b", context=131_072),
        Model("qwen-3.8-27b", context=131_072, images=True),
    )
    endpoints = {  # noqa: RUF012 - typed ClassVar in the contract
        "chat": "/chat/completions",
        "completions": "/completions",
    }
