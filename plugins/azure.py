"""Azure OpenAI: https://learn.microsoft.com/azure/ai-foundry/openai. Looked up 2026-11-24."""

from __future__ import annotations

from urllib.parse import quote

from nexus_gateway.provider import (
    Account,
    CallIds,
    CannotServe,
    KnownFields,
    Provider,
    RenameFields,
    Secret,
    ToolNames,
    WholeSchemas,
)

V1 = "/openai/v1"


class Azure(Provider):
    """A resource of Azure OpenAI; its address is AZURE_BASE_URL, its deployment AZURE_MODEL.

    With AZURE_API_VERSION (2024-10-21 is the newest that is generally available) the older URLs
    are used, which contain the deployment; without it those of the v1 API.
    """

    title = "Azure"
    options = {"API_VERSION": ""}  # noqa: RUF012 - typed ClassVar in the contract
    stream_usage = True  # refused before 2024-09, and together with `data_sources`
    adaptations = (
        RenameFields({"max_tokens": "max_completion_tokens"}),  # reasoning models know only that
        KnownFields(),
        CallIds(".{1,40}", 40),
        ToolNames("[a-zA-Z0-9_-]{1,64}", 64),
        WholeSchemas(),
    )
    endpoints = {  # noqa: RUF012 - typed ClassVar in the contract
        "chat": "/chat/completions",
        "completions": "/completions",
        "embeddings": "/embeddings",
        "transcriptions": "/audio/transcriptions",
    }

    def authorize(self, key: Secret) -> dict[str, str]:
        return {"api-key": key.reveal()}

    def url(self, account: Account, endpoint: str, model: str) -> str:
        root = account.base_url.removesuffix(V1).removesuffix("/openai")
        path = self.endpoints[endpoint]
        version = account.options.get("API_VERSION")
        if not version:
            return root + V1 + path
        if model in (".", ".."):
            raise CannotServe("`model` must be the name of a deployment.", "model")
        deployment = quote(model, safe="")
        return f"{root}/openai/deployments/{deployment}{path}?api-version={quote(version)}"
