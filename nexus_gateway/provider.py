"""The provider contract: how to talk to one backend. Version 1.

A plugin is a class and an entry point in the group `nexus_gateway.providers`:

    [options.entry_points]
    nexus_gateway.providers =
        acme = nexus_acme:Acme

The entry point's name is the provider's name: callers send `"model": "acme"`, and its settings are
ACME_KEY_1, ACME_KEY_2, …, ACME_MODEL, ACME_BASE_URL (or, for one key, ACME_MODEL_2,
ACME_BASE_URL_2).

There are three base classes, one for each kind of backend:

- `Provider`: speaks the OpenAI API. Set attributes; no method is needed. Its bytes are passed
  through unchanged. Other endpoints that it supports (embeddings, for example) go into
  `endpoints`; `prepare` adapts requests to its quirks.
- `Translator`: speaks another wire format over HTTP. `encode` builds the request, `stream` turns
  its SSE events into OpenAI chunks. It is always asked to stream; if the caller wants a single
  object, the gateway builds it from the chunks.
- `InProcess`: is not an HTTP service. `generate` yields OpenAI chunks.

One provider object serves all its keys and many requests at once: keep the state of a request in
local variables.

What a backend needs changed in a chat is listed in `adaptations`, as data: `KnownFields`,
`Reasoning`, `CallIds` and others. `prepare` is for what only code can say; `rename_fields`,
`drop_fields` and `rename_roles` are common changes for it. Each of these returns the chat that it
was given if there is nothing to change, so that the caller's own bytes can be sent.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from functools import cached_property
from typing import Any, ClassVar

from nexus_gateway.secret import Secret
from nexus_gateway.wire import json_codec
from nexus_gateway.wire.adaptations import (
    Adaptation,
    CallIds,
    CallSignatures,
    CapOutput,
    DropFields,
    Effort,
    KnownFields,
    Reasoning,
    RenameFields,
    RenameRoles,
    SystemFirst,
    ToolNames,
    WholeSchemas,
    drop_fields,
    rename_fields,
    rename_roles,
)
from nexus_gateway.wire.chunks import Answer, Chunk
from nexus_gateway.wire.rate_limits import Quota, read_quotas
from nexus_gateway.wire.sse import Event

__all__ = [
    "API_VERSION",
    "CHAT",
    "Account",
    "Adaptation",
    "Answer",
    "Call",
    "CallIds",
    "CallSignatures",
    "CannotServe",
    "CapOutput",
    "Chunk",
    "DropFields",
    "Effort",
    "Event",
    "HttpRequest",
    "InProcess",
    "KnownFields",
    "Model",
    "Outcome",
    "Provider",
    "Quota",
    "Reasoning",
    "RenameFields",
    "RenameRoles",
    "Scope",
    "Secret",
    "SystemFirst",
    "ToolNames",
    "Translator",
    "Verdict",
    "WholeSchemas",
    "drop_fields",
    "json_request",
    "rename_fields",
    "rename_roles",
]
# Values of `model` by which a caller lets the gateway choose.
ANY_MODEL = frozenset({"auto", "nexus", ""})
CHAT = "chat"
API_VERSION = 1
KINDS = (CHAT, "embeddings", "completions", "transcriptions")
ENDPOINTS = (*KINDS, "responses", "messages", "count_tokens")
RATE_LIMIT_PARK_S = 10.0


class Outcome(Enum):
    """How an attempt at an instance ends, and what that means for the instance."""

    SUCCESS = "success"
    FAILURE = "failure"  # counts against its health and its circuit
    RATE_LIMITED = "rate_limited"  # it is parked
    BAD_KEY = "bad_key"  # it is parked for longer
    REFUSED = "refused"  # not its fault; the caller gets the upstream's error if no other answers
    CANCELLED = "cancelled"  # it does not count


class Scope(Enum):
    """What a verdict concerns, and so what may serve the request instead."""

    REQUEST = "request"  # the request itself: no other instance is asked
    ANSWER = "answer"  # what the model wrote this time: any instance, or the same once more
    KEY = "key"  # this key, for this request: any other instance
    DEPLOYMENT = "deployment"  # this model with this key: any other instance
    MODEL = "model"  # this model of the provider with any key: other models, other providers
    LIMITS = "limits"  # what the backend takes of this model: other models, other providers
    EDGE = "edge"  # a proxy before the API, such as a firewall: one other instance
    TIME = "time"  # the time it was given, which may be too short for this request
    ADDRESS = "address"  # the connection, whatever was to be sent on it: any other instance


@dataclass(frozen=True, slots=True)
class Verdict:
    """The result of an attempt.

    Args:
        outcome: how it ended.
        reason: a short text for operators and callers, without keys and foreign texts.
        status: the upstream's HTTP status, 0 if there was none.
        park_s: how long the instance gets no requests, in seconds; for RATE_LIMITED, and for a
            FAILURE that asks for it.
        error: the upstream's error in OpenAI's shape, if the caller is to get it.
        scope: what it concerns. Decides what may serve a request that was REFUSED (default:
            nothing, as it concerns the request); FAILUREs that concern the ADDRESS count at once,
            others only if another instance answers the same request.
    """

    outcome: Outcome
    reason: str
    status: int = 0
    park_s: float | None = None
    error: Mapping[str, Any] | None = None
    scope: Scope = Scope.REQUEST


@dataclass(frozen=True, slots=True)
class Model:
    """A model that a provider serves.

    Args:
        id: the upstream's name of the model.
        context: the context window in tokens, 0 if unknown.
        images: whether it accepts images.
        kind: the endpoint that it serves, one of KINDS.
        max_output: the longest answer in tokens, 0 if unknown; requests for more are lowered to it.
    """

    id: str
    context: int = 0
    images: bool = False
    kind: str = CHAT
    max_output: int = 0


@dataclass(frozen=True, slots=True)
class Account:
    """An instance's key, address and options.

    Args:
        key: empty if the provider needs none.
        base_url: the provider's base URL or the operator's override, without a trailing slash.
        options: the values of the provider's own variables, by name (see `Provider.options`).
    """

    key: Secret
    base_url: str
    options: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Call:
    """One attempt at a chat.

    Args:
        chat: the caller's chat in OpenAI's shape, except that `model` is the upstream's name of the
            model and `stream` is what the gateway wants. Shared between attempts: do not change it.
        account: the instance's key, address and options.
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
        """The root of the API, without a trailing slash."""
        return self.account.base_url


@dataclass(slots=True)
class HttpRequest:
    """An HTTP request; its method is POST.

    Args:
        url: the complete URL.
        body: the bytes to send, or an iterator of them.
        headers: all headers to send, including credentials.
    """

    url: str
    body: bytes | AsyncIterable[bytes]
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)


class CannotServe(Exception):
    """Raised by a plugin before its first chunk: the backend does not support the request.

    The caller gets a 400 with the message, and the instance's health is not affected.

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
        title: the display name: instances are called "Title (Key #1)".
        base_url: the root of the API, without a trailing slash. Empty if only the operator can
            know it: an instance then needs NAME_BASE_URL.
        default_model: the model of an instance unless NAME_MODEL is set; empty if only the
            operator can know it.
        successors: the models to ask for, in this order, if the provider has withdrawn
            `default_model`. Not used if NAME_MODEL is set.
        models: what the provider serves, with context windows and modalities. The first of a kind
            is the default of that kind.
        endpoints: the endpoints (of ENDPOINTS) that the backend supports in their own format, each
            with its path below `base_url`.
        needs_key: False for a backend without keys: it has one instance, or one for each
            NAME_BASE_URL_n.
        headers: additional headers for each request.
        options: additional variables, NAME_…, with their defaults; their values are in
            `Account.options`.
        first_token_timeout_ms: how long the first token of a stream may take unless
            NAME_FIRST_TOKEN_TIMEOUT_MS is set; None for the gateway's FIRST_TOKEN_TIMEOUT_MS.
        stream_usage: whether it accepts `stream_options: {"include_usage": true}`. The gateway then
            always asks for usage, and removes it for callers who did not ask.
        adaptations: what the backend needs changed in a chat, in this order, before `prepare` or
            `encode`. Without any, a caller's chat goes as it is, and one that was translated from
            another dialect has only what OpenAI's reference knows, with one system message. Without
            `Effort` no translated chat asks for one.
    """

    api_version: ClassVar[int] = API_VERSION
    title: ClassVar[str] = ""
    base_url: ClassVar[str] = ""
    default_model: ClassVar[str] = ""
    successors: ClassVar[tuple[str, ...]] = ()
    models: ClassVar[tuple[Model, ...]] = ()
    endpoints: ClassVar[Mapping[str, str]] = {CHAT: "/chat/completions"}
    needs_key: ClassVar[bool] = True
    headers: ClassVar[Mapping[str, str]] = {}
    options: ClassVar[Mapping[str, str]] = {}
    first_token_timeout_ms: ClassVar[int | None] = None
    stream_usage: ClassVar[bool] = False
    adaptations: ClassVar[tuple[Adaptation, ...]] = ()

    def authorize(self, key: Secret) -> dict[str, str]:
        """Return the headers that carry the key."""
        text = key.reveal()
        return {"Authorization": f"Bearer {text}"} if text else {}

    def url(self, account: Account, endpoint: str, model: str) -> str:
        """Return the URL of one of `endpoints`."""
        return account.base_url + self.endpoints[endpoint]

    def prepare(self, chat: Mapping[str, Any]) -> Mapping[str, Any] | None:
        """Adapt a chat to this backend's quirks.

        Args:
            chat: the body as it would be sent; shared, do not change it.

        Returns:
            A new body; or the given one or None (the default), to send the caller's own bytes.

        Raises:
            CannotServe: the backend does not support the request.
        """
        return None

    def read_failure(self, status: int, headers: Mapping[str, str], body: bytes) -> Verdict | None:
        """Classify a response that is not 2xx, if this provider differs from the default.

        Args:
            status: the HTTP status.
            headers: the response's headers, case-insensitive.
            body: its first 64 KiB.

        Returns:
            A verdict, or None for the gateway's own rules (`nexus_gateway.upstream.failures`).
        """
        return None

    def read_quotas(self, headers: Mapping[str, str], now_s: float) -> Iterable[Quota]:
        """Read the remaining rate limits, if this provider uses other headers than the usual ones.

        Args:
            headers: of any response, case-insensitive.
            now_s: the wall clock in Unix seconds.
        """
        return read_quotas(headers, now_s)

    @property
    def serves_chat(self) -> bool:
        """Whether it can answer a chat, in any format."""
        return CHAT in self.endpoints

    @cached_property
    def all_adaptations(self) -> tuple[Adaptation, ...]:
        """Its adaptations, and the limits of its models if it lists any."""
        limits = {model.id: model.max_output for model in self.models if model.max_output}
        return (*self.adaptations, CapOutput(limits)) if limits else self.adaptations

    @cached_property
    def adaptations_of_translated(self) -> tuple[Adaptation, ...]:
        """As `all_adaptations`, for a chat that was translated from another dialect."""
        takes_effort = any(isinstance(adaptation, Effort) for adaptation in self.adaptations)
        return (
            *(() if takes_effort else (DropFields(("reasoning_effort",)),)),
            *(() if self.adaptations else (KnownFields(), SystemFirst())),
            *self.all_adaptations,
        )

    @cached_property
    def tool_names(self) -> ToolNames | None:
        """How it renames tools, whose names an answer's calls get back."""
        return next((a for a in self.adaptations if isinstance(a, ToolNames)), None)


class Translator(Provider, ABC):
    """A backend with a wire format of its own, over HTTP and SSE.

    If callers may speak that format too, name it in `endpoints`: such requests are then passed
    through, and only the others are translated.
    """

    endpoints: ClassVar[Mapping[str, str]] = {}

    @property
    def serves_chat(self) -> bool:
        """Whether it can answer a chat: always."""
        return True

    @abstractmethod
    def encode(self, call: Call) -> HttpRequest:
        """Build the HTTP request of a call; `call.chat["stream"]` is always true.

        Raises:
            CannotServe: the backend does not support the request. Any other exception counts as a
                failure of this provider.
        """

    @abstractmethod
    def stream(self, events: AsyncIterator[Event], answer: Answer) -> AsyncIterator[dict[str, Any]]:
        """Turn the backend's SSE events into OpenAI chunks, built with `answer`.

        Write it as an async generator. End with `answer.finish(...)`: an answer without a finish
        counts as truncated.
        """


class InProcess(Provider, ABC):
    """A backend that is not an HTTP service: a library, or a demo."""

    endpoints: ClassVar[Mapping[str, str]] = {}
    needs_key: ClassVar[bool] = False

    @property
    def serves_chat(self) -> bool:
        """Whether it can answer a chat: always."""
        return True

    @abstractmethod
    def generate(self, call: Call, answer: Answer) -> AsyncIterator[dict[str, Any]]:
        """Yield OpenAI chunks, built with `answer`. Write it as an async generator."""


def adapted(provider: Provider, chat: Mapping[str, Any], *, translated: bool) -> Mapping[str, Any]:
    """Return a chat as a provider's backend takes it; the given one if there is nothing to change.

    Args:
        provider: of the attempt.
        chat: the body as it would be sent.
        translated: whether the caller used another dialect.
    """
    every = provider.adaptations_of_translated if translated else provider.all_adaptations
    for adaptation in every:
        chat = adaptation.adapt(chat)
    return chat


def json_request(
    call: Call, url: str, payload: Mapping[str, Any], headers: Mapping[str, str]
) -> HttpRequest:
    """Build a POST with a JSON body, for a Translator's `encode`.

    Args:
        call: the call; its key is not added.
        url: the path below `call.base_url`, or a complete URL.
        payload: the body.
        headers: additional headers, including credentials.
    """
    target = url if url.startswith(("http://", "https://")) else call.base_url + url
    return HttpRequest(
        target, json_codec.dumps(payload), {"Content-Type": "application/json", **headers}
    )
