"""A body for each endpoint, and a provider that has them."""

from __future__ import annotations

from typing import Any

from fakes import Fake

from nexus_gateway.provider import Model

HI = [{"role": "user", "content": "Hi"}]
BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": HI, "stream": False},
    "/v1/messages": {"messages": HI, "max_tokens": 9},
    "/v1/responses": {"input": "Hi"},
    "/v1/embeddings": {"input": "Hi", "model": "fake"},
    "/v1/completions": {"prompt": "Hi"},
}


class Able(Fake):
    """Has endpoints of its own beside the chat; Messages and Responses are translated."""

    models = (Model("fake-large", 1000, True), Model("ears", kind="transcriptions"))
    endpoints = {
        "chat": "/chat/completions",
        "completions": "/completions",
        "embeddings": "/embeddings",
        "transcriptions": "/audio/transcriptions",
    }


class Native(Able):
    """Has endpoints for Messages and Responses as well, which are passed as they are."""

    endpoints = {
        **Able.endpoints,
        "responses": "/responses",
        "messages": "/messages",
        "count_tokens": "/messages/count_tokens",
    }
