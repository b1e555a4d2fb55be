"""OpenRouter: https://openrouter.ai/docs/api-reference. Models looked up 2026-11-30."""

from nexus_gateway.provider import (
    Effort,
    KnownFields,
    Model,
    Provider,
    Reasoning,
    ToolNames,
    WholeSchemas,
)


class OpenRouter(Provider):
    """OpenRouter, by its OpenAI-compatible API."""

    title = "OpenRouter"
    base_url = "https://openrouter.ai/api/v1"
    # It selects a free model. There are no successors, as all others cost money.
    default_model = "openrouter/free"
    stream_usage = True  # sent in any case
    # Messages and tools: https://openrouter.ai/docs/api-reference, 2026-11-30.
    adaptations = (
        Reasoning("reasoning"),
        KnownFields(also=("cache_control", "images", "reasoning", "reasoning_details")),
        ToolNames("[a-zA-Z0-9_-]{1,64}", 64),  # of most models behind it
        WholeSchemas(),
        # https://openrouter.ai/docs/use-cases/reasoning-tokens: it finds what each model takes.
        Effort({".*": ("none", "minimal", "low", "medium", "high", "xhigh", "max")}),
    )
    models = (
        Model("openrouter/free", context=200_000, images=True),
        Model("openrouter/auto", context=2_000_000, images=True),
        Model("deepseek/deepseek-v4.1-flash", context=1_048_576, images=True),
        Model("openai/text-embedding-3-small", context=8_191, kind="embeddings"),
    )
    endpoints = {  # noqa: RUF012 - typed ClassVar in the contract
        "chat": "/chat/completions",
        "embeddings": "/embeddings",
    }
    headers = {"X-Title": "Nexus Gateway"}  # noqa: RUF012 - typed ClassVar in the contract
