"""The plugin contract: how to talk to one backend. Version 1.

A plugin is a class and an entry point in the group `nexus_gateway.providers`:

    [options.entry_points]
    nexus_gateway.providers =
        acme = nexus_acme:Acme

The entry point's name is the provider's name: callers say `"model": "acme"`, and its
settings are ACME_KEY_1, ACME_KEY_2, …, ACME_MODEL, ACME_BASE_URL (or, for one key alone,
ACME_MODEL_2, ACME_BASE_URL_2).

Three kinds, one for each sort of backend:

- `Provider`: speaks the OpenAI API. Attributes, no method. Its bytes pass untouched. What
  else it takes (embeddings, say) stands in `endpoints`; a foible is mended in `prepare`.
- `Translator`: speaks another wire format over HTTP. `encode` makes the request, `stream`
  turns its SSE events into OpenAI chunks. It is always asked to stream; the gateway folds
  the chunks when the caller wanted one object.
- `InProcess`: is no HTTP service. `generate` yields OpenAI chunks.

One provider object serves all its keys and many requests at once: keep the state of a
request in local variables.

`rename_fields`, `drop_fields` and `rename_roles` are small changes to a chat, for `prepare`. Each
returns the chat that it was given if there is nothing to change, so that the caller's own bytes
can be sent.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, ClassVar

from nexus_gateway.secret import Secret
from nexus_gateway.wire import json_codec
from nexus_gateway.wire.chunks import Answer, Chunk
from nexus_gateway.wire.rate_limits import Quota, read_quotas
from nexus_gateway.wire.sse import Event

__all__ = [
    "API_VERSION",
    "CHAT",
    "Account",
    "Answer",
    "Call",
    "CannotServe",
    "Chunk",
    "Event",
    "HttpRequest",
    "InProcess",
    "Model",
    "Outcome",
    "Provider",
    "Quota",
    "Secret",
    "Translator",
    "Verdict",
    "drop_fields",
    "json_request",
    "rename_fields",
    "rename_roles",
]
# Names by which a caller leaves the choice of a model to the gateway.
ANY_MODEL = frozenset({"auto", "nexus", ""})
CHAT = "chat"
API_VERSION = 1
KINDS = (CHAT, "embeddings", "completions", "transcriptions")
ENDPOINTS = (*KINDS, "responses", "messages", "count_tokens")
RATE_LIMIT_PARK_S = 10.0
Chat = Mapping[str, Any]


class Outcome(Enum):
    """How a lease ends."""

    SUCCESS = "success"
    FAILURE = "failure"
    RATE_LIMITED = "rate_limited"
    BAD_KEY = "bad_key"
    REFUSED = "refused"
    CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of an attempt.

    Args:
        outcome: what it means to the instance.
        reason: a short text for operators and callers, in our words: no key, no foreign text.
        status: the upstream's HTTP status, 0 when there was none.
        park_s: for RATE_LIMITED, and for a FAILURE that says so, how long the instance stays away.
        error: the upstream's error in OpenAI's shape, where it goes on to the caller.
    """

    outcome: Outcome
    reason: str
    status: int = 0
    park_s: float | None = None
    error: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Model:
    """A model that a provider serves.

    Args:
        id: the name the upstream knows it by.
        context: the context window in tokens, 0 when unknown.
        images: whether it takes images.
        kind: what it is for, one of KINDS.
    """

    id: str
    context: int = 0
    images: bool = False
    kind: str = CHAT


@dataclass(frozen=True, slots=True)
class Account:
    """Where an instance asks, and with what.

    Args:
        key: its key; empty for a provider that needs none.
        base_url: the provider's base URL or the owner's override, without a trailing slash.
        options: the values of the provider's own variables, by their names.
    """

    key: Secret
    base_url: str
    options: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Call:
    """What a provider is asked to do, for one attempt.

    Args:
        chat: the caller's chat as the upstream shall see it: `model` is the upstream's own
            name and `stream` what is wanted of it. Shared between attempts: do not change it.
        account: the instance's key and address.
    """

    chat: Mapping[str, Any]
    account: Account

    @property
    def model(self) -> str:
        """The upstream's name of the model."""
        return str(self.chat["model"])

    @property
    def key(self) -> Secret:
        """The instance's key."""
        return self.account.key

    @property
    def base_url(self) -> str:
        """Where the API is, without a trailing slash."""
        return self.account.base_url


@dataclass(frozen=True, slots=True)
class HttpRequest:
    """An HTTP request to make: always a POST.

    Args:
        url: where to.
        body: the bytes to send, or what gives them piece by piece.
        headers: the headers to send, credentials included; nothing else is sent along.
    """

    url: str
    body: bytes | AsyncIterable[bytes]
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)


class CannotServe(Exception):
    """Raised by a plugin before its first chunk: the caller asks for what the backend lacks.

    The caller gets a 400 with the message, and the instance is not blamed.

    Args:
        message: what is wrong and what to do, for the caller.
        param: the field at fault, such as `n`.
    """

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param


class Provider:
    """A backend that speaks the OpenAI API. Subclass it and set the attributes.

    Attributes:
        api_version: the version of this contract that the plugin was written for.
        title: the name people see: instances are called "Title (Key #1)".
        base_url: the root of the API; empty where only the owner can know it: an instance
            then needs NAME_BASE_URL.
        default_model: the model of an instance, unless NAME_MODEL says otherwise; empty where
            only the owner can know it.
        models: what the provider serves, with context windows and modalities. The first of a
            kind is that kind's default.
        endpoints: which requests (of ENDPOINTS) the backend takes in their own form, and where
            below `base_url`.
        needs_key: False for a backend that needs no key: it then has one instance, or one for
            each NAME_BASE_URL_n.
        headers: more headers for each request.
        options: more variables, NAME_…, with their defaults; their values: `Account.options`.
        stream_usage: whether it takes `stream_options: {"include_usage": true}`. The gateway then
            asks so for callers who do not, and keeps from them what they did not ask for.
    """

    api_version: ClassVar[int] = API_VERSION
    title: ClassVar[str] = ""
    base_url: ClassVar[str] = ""
    default_model: ClassVar[str] = ""
    models: ClassVar[tuple[Model, ...]] = ()
    endpoints: ClassVar[Mapping[str, str]] = {CHAT: "/chat/completions"}
    needs_key: ClassVar[bool] = True
    headers: ClassVar[Mapping[str, str]] = {}
    options: ClassVar[Mapping[str, str]] = {}
    stream_usage: ClassVar[bool] = False

    def authorize(self, key: Secret) -> dict[str, str]:
        """Return the headers that carry the key."""
        return {"Authorization": f"Bearer {key.reveal()}"} if key else {}

    def url(self, account: Account, endpoint: str, model: str) -> str:
        """Return where to send a request for one of `endpoints`."""
        return account.base_url + self.endpoints[endpoint]

    def prepare(self, chat: Mapping[str, Any]) -> Mapping[str, Any] | None:
        """Mend a chat that this backend would not take as it is.

        Args:
            chat: the body as it would be sent; shared, do not change it.

        Returns:
            A new body; or what it was given, or None (the default), to send the caller's own
            bytes. `nexus_gateway.provider` has the usual changes.

        Raises:
            CannotServe: the caller asks for what the backend lacks.
        """
        return None

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

    def read_quotas(self, headers: Mapping[str, str], now_s: float) -> Iterable[Quota]:
        """Read what is left of rate limits where it is told in none of the forms of `rate_limit`.

        Args:
            headers: of any answer, case-insensitive.
            now_s: the wall clock in Unix seconds.
        """
        return read_quotas(headers, now_s)

    @property
    def serves_chat(self) -> bool:
        """Whether a chat can be had of it, in whatever form it is sent."""
        return CHAT in self.endpoints


class Translator(Provider, ABC):
    """A backend with a wire format of its own, spoken over HTTP and SSE.

    Where that format is one that callers speak too, name it in `endpoints`: such a request
    passes as it is, and only the others are translated.
    """

    endpoints: ClassVar[Mapping[str, str]] = {}

    @property
    def serves_chat(self) -> bool:
        """Whether a chat can be had of it: always."""
        return True

    @abstractmethod
    def encode(self, call: Call) -> HttpRequest:
        """Make the HTTP request for a call; `call.chat["stream"]` is always true.

        CannotServe goes to the caller; any other exception is a failure of this provider.
        """

    @abstractmethod
    def stream(self, events: AsyncIterator[Event], answer: Answer) -> AsyncIterator[dict[str, Any]]:
        """Turn the backend's SSE events into OpenAI chunks, made with `answer`.

        Write it as an async generator. End with `answer.finish(...)`: an answer without a
        finish counts as cut off.
        """


class InProcess(Provider, ABC):
    """A backend that is no HTTP service: a library, or a demo."""

    endpoints: ClassVar[Mapping[str, str]] = {}
    needs_key: ClassVar[bool] = False

    @property
    def serves_chat(self) -> bool:
        """Whether a chat can be had of it: always."""
        return True

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


def rename_fields(chat: Chat, **names: str) -> Chat:
    """Give fields other names; where the new name is present too, it keeps its value.

    Args:
        chat: the body.
        names: the new name of each old one.
    """
    if not any(old in chat for old in names):
        return chat
    moved = {new: chat[old] for old, new in names.items() if old in chat}
    return {**moved, **{k: v for k, v in chat.items() if k not in names}}


def drop_fields(chat: Chat, *names: str) -> Chat:
    """Leave fields out."""
    if not any(name in chat for name in names):
        return chat
    return {k: v for k, v in chat.items() if k not in names}


def rename_roles(chat: Chat, **roles: str) -> Chat:
    """Give messages other roles.

    Args:
        chat: the body.
        roles: the new role of each old one.
    """
    if not any(message["role"] in roles for message in chat["messages"]):
        return chat
    messages = [{**m, "role": roles.get(m["role"], m["role"])} for m in chat["messages"]]
    return {**chat, "messages": messages}
