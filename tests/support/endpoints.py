"""A body for each endpoint, and providers that support them."""

from __future__ import annotations

from typing import Any

from fakes import KEYS, Fake
from plugin_points import built_in

from nexus_gateway.provider import Model
from nexus_gateway.testing.gateway import instance_of
from nexus_gateway.testing.upstream import FakeUpstream

HI = [{"role": "user", "content": "Hi"}]
BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": HI, "stream": False},
    "/v1/messages": {"messages": HI, "max_tokens": 9},
    "/v1/responses": {"input": "Hi"},
    "/v1/embeddings": {"input": "Hi", "model": "fake"},
    "/v1/completions": {"prompt": "Hi"},
}


class Able(Fake):
    """Supports more endpoints than chat; Messages and Responses are translated."""

    models = (Model("fake-large", 1000, True), Model("ears", kind="transcriptions"))
    endpoints = {
        "chat": "/chat/completions",
        "completions": "/completions",
        "embeddings": "/embeddings",
        "transcriptions": "/audio/transcriptions",
    }


class Native(Able):
    """Supports Messages and Responses natively as well."""

    endpoints = {
        **Able.endpoints,
        "responses": "/responses",
        "messages": "/messages",
        "count_tokens": "/messages/count_tokens",
    }


def anthropic(upstream: FakeUpstream, number: int = 1) -> Any:
    return instance_of(
        built_in("anthropic"), upstream.base_url, key=KEYS[number - 1], number=number
    )


def form(head: str, *more: str, boundary: str = "XbX") -> bytes:
    """Return a multipart body: a part with each of these heads, and a file."""
    file = 'Content-Disposition: form-data; name="file"; filename="a.wav"'
    parts = [f"{h}\r\n\r\nvalue" for h in (head, *more)] + [f"{file}\r\n\r\nRIFF"]
    return "".join(f"--{boundary}\r\n{p}\r\n" for p in parts).encode() + f"--{boundary}--".encode()
