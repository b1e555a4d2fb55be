"""DeepSeek: https://api-docs.deepseek.com. Looked up 2026-11-30."""

from nexus_gateway.provider import (
    Effort,
    KnownFields,
    Model,
    Provider,
    Reasoning,
    RenameFields,
    RenameRoles,
    ToolNames,
)


class DeepSeek(Provider):
    """DeepSeek, by its OpenAI-compatible API."""

    title = "DeepSeek"
    base_url = "https://api.deepseek.com"
    default_model = "deepseek-flash"
    successors = ("deepseek-v4-pro",)
    stream_usage = True  # sent with the finish
    # In a conversation with tool calls each turn of the assistant must have its reasoning, and
    # none may be empty (https://api-docs.deepseek.com/guides/thinking_mode, 2026-11-30).
    adaptations = (
        RenameFields({"max_completion_tokens": "max_tokens"}),  # the newer name is ignored
        RenameRoles({"developer": "system"}),
        Reasoning(missing=" "),
        KnownFields(also=("prefix", "reasoning_content")),
        ToolNames("[a-zA-Z0-9_-]{1,64}", 64),  # its API reference, `tools`
        # https://api-docs.deepseek.com/guides/thinking_mode: thinking is not turned off by it.
        Effort({".*": ("minimal", "low", "medium", "high", "xhigh", "max")}),
    )
    models = (
        Model("deepseek-flash", context=1_000_000, images=True),
        Model("deepseek-v4-pro", context=1_000_000),
    )
