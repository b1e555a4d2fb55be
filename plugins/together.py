"""Together AI: https://docs.together.ai/reference. Looked up 2026-11-24."""

from nexus_gateway.provider import (
    Effort,
    KnownFields,
    Model,
    Provider,
    Reasoning,
    RenameFields,
    ToolNames,
)


class Together(Provider):
    """Together AI, by its OpenAI-compatible API."""

    title = "Together"
    base_url = "https://api.together.xyz/v1"
    default_model = "deepseek-ai/DeepSeek-V4.1-Flash"
    successors = ("zai-org/GLM-5.3-Flash", "openai/gpt-oss-120b")
    stream_usage = True
    adaptations = (
        RenameFields({"max_completion_tokens": "max_tokens"}),  # the newer name is unknown
        Reasoning("reasoning"),  # of its OpenAPI document, 2026-11-30
        KnownFields(also=("reasoning",)),
        ToolNames("[a-zA-Z0-9_-]{1,64}", 64),
        Effort({"openai/gpt-oss-.*": ("low", "medium", "high")}),
    )
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
