"""The plugin contract: how to talk to one backend. Version 1.

A plugin is a class and an entry point in the group `nexus_gateway.providers`:

    [options.entry_points]
    nexus_gateway.providers =
        acme = nexus_acme:Acme

The entry point's name is the provider's name: callers say `"model": "acme"`, and its
settings are ACME_KEY_1, ACME_KEY_2, …, ACME_MODEL, ACME_BASE_URL.

Three kinds, one for each sort of backend:

- `Provider`: speaks the OpenAI API. Attributes, no method. Its bytes pass untouched.
- `Translator`: speaks another wire format over HTTP. `encode` makes the request, `stream`
  turns its SSE events into OpenAI chunks. It is always asked to stream; the gateway folds
  the chunks when the caller wanted one object.
- `InProcess`: is no HTTP service. `generate` yields OpenAI chunks.

One provider object serves all its keys and many requests at once: keep the state of a
request in local variables.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from nexus_gateway import json_codec
from nexus_gateway.answer import Answer
from nexus_gateway.classify import Verdict
from nexus_gateway.secret import Secret
from nexus_gateway.sse import Event

API_VERSION = 1


@dataclass(frozen=True, slots=True)
class Model:
    """A model that a provider serves.

    Args:
        id: the name the upstream knows it by.
        context: the context window in tokens, 0 when unknown.
        images: whether it takes images.
    """

    id: str
    context: int = 0
    images: bool = False


@dataclass(frozen=True, slots=True)
class Call:
    """What a provider is asked to do, for one attempt.

    Args:
        chat: the caller's body as the upstream shall see it: `model` is the upstream's own
            name and `stream` what is wanted of it. Shared between attempts: do not change it.
        key: the instance's key; empty for a provider that needs none.
        base_url: the provider's base URL or the owner's override, without a trailing slash.
    """

    chat: Mapping[str, Any]
    key: Secret
    base_url: str

    @property
    def model(self) -> str:
        """The upstream's name of the model."""
        return str(self.chat["model"])


@dataclass(frozen=True, slots=True)
class HttpRequest:
    """An HTTP request to make: always a POST.

    Args:
        url: where to.
        body: the bytes to send.
        headers: the headers to send, credentials included; nothing else is sent along.
    """

    url: str
    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)


class Provider:
    """A backend that speaks the OpenAI API. Subclass it and set the attributes.

    Attributes:
        api_version: the version of this contract that the plugin was written for.
        title: the name people see: instances are called "Title (Key #1)".
        base_url: the root of the API, to which `/chat/completions` is added.
        default_model: the model of an instance, unless NAME_MODEL says otherwise.
        models: what the provider serves, with context windows and modalities.
        needs_key: False for a backend that needs no key: it then has one instance.
        headers: more headers for each request.
    """

    api_version: ClassVar[int] = API_VERSION
    title: ClassVar[str] = ""
    base_url: ClassVar[str] = ""
    default_model: ClassVar[str] = ""
    models: ClassVar[tuple[Model, ...]] = ()
    needs_key: ClassVar[bool] = True
    headers: ClassVar[Mapping[str, str]] = {}

    def authorize(self, key: Secret) -> dict[str, str]:
        """Return the headers that carry the key."""
        return {"Authorization": f"Bearer {key.reveal()}"} if key else {}

    def read_failure(self, status: int, headers: Mapping[str, str], body: bytes) -> Verdict | None:
        """Judge an answer that is not 2xx where this provider differs from the default.

        Args:
            status: the HTTP status.
            headers: the answer's headers, case-insensitive.
            body: its first 64 KiB.

        Returns:
            A verdict, or None to leave it to the gateway (see `classify.classify`).
        """
        return None


class Translator(Provider, ABC):
    """A backend with a wire format of its own, spoken over HTTP and SSE."""

    @abstractmethod
    def encode(self, call: Call) -> HttpRequest:
        """Make the HTTP request for a call; `call.chat["stream"]` is always true.

        An exception counts as a failure of this provider, not of the caller.
        """

    @abstractmethod
    def stream(self, events: AsyncIterator[Event], answer: Answer) -> AsyncIterator[dict[str, Any]]:
        """Turn the backend's SSE events into OpenAI chunks, made with `answer`.

        Write it as an async generator. End with `answer.finish(...)`: an answer without a
        finish counts as cut off.
        """


class InProcess(Provider, ABC):
    """A backend that is no HTTP service: a library, or a demo."""

    needs_key: ClassVar[bool] = False

    @abstractmethod
    def generate(self, call: Call, answer: Answer) -> AsyncIterator[dict[str, Any]]:
        """Answer with OpenAI chunks, made with `answer`. Write it as an async generator."""


def json_request(
    call: Call, url: str, payload: Mapping[str, Any], headers: Mapping[str, str]
) -> HttpRequest:
    """Make a POST with a JSON body, for a Translator's `encode`.

    Args:
        call: the call (its key is not added: say it in `headers`).
        url: the path below `call.base_url`, or a whole URL.
        payload: what to send.
        headers: more headers, credentials included.
    """
    whole = url if url.startswith(("http://", "https://")) else call.base_url + url
    return HttpRequest(
        whole, json_codec.dumps(payload), {"Content-Type": "application/json", **headers}
    )
