"""The hook contract: inspect and change requests and answers. Version 1, as for providers.

A hook is a class and an entry point in the group `nexus_gateway.hooks`:

    [options.entry_points]
    nexus_gateway.hooks =
        no-secrets = nexus_acme:NoSecrets

Every installed hook is active; hooks are called in the order of their names. Only the methods that
a class overrides are called; the others cost nothing. A hook that cannot be loaded stops the start,
because a gateway without it might let through what it should stop.

A hook fails if it raises anything but `Rejected`, or takes longer than `deadline_s`. If `fail_open`
is False (the default), the caller then gets a 500 that does not disclose the cause. If it is True,
the request goes on as if the hook were not there. `at_end` runs after the answer; it delays
nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from nexus_gateway.errors import GatewayError
from nexus_gateway.provider import API_VERSION


class Rejected(GatewayError):
    """Raised by a hook to reject a request: the caller gets this error and nothing else.

    Args:
        message: for the caller.
        status: a 4xx status; any other becomes 403.
        code: OpenAI's `code`.
        param: the field at fault, if there is one.
    """

    kind = "invalid_request_error"

    def __init__(
        self, message: str, *, status: int = 403, code: str = "refused", param: str | None = None
    ) -> None:
        super().__init__(message, code=code, param=param)
        self.status = status if 400 <= status < 500 else 403


@dataclass(slots=True)
class HookRequest:
    """A request, as hooks see it.

    Args:
        id: the request's id.
        dialect: the endpoint that was called: `chat`, `messages`, `responses`, `embeddings`, …
        caller: `key-2` for the second of GATEWAY_KEYS; "" if none are set.
        model: the model that the request names, None if it names none.
        stream: whether the answer is streamed.
        body: the request as an OpenAI chat, whatever the dialect. If it has no such form
            (embeddings, for example), the body as it came; None for a form with a file. Do not
            change it: return another.
        own: the body as it came, in the caller's dialect. This is what is sent if the backend
            speaks that dialect and no hook changes `body`; it may contain more than a chat can.
        notes: for the hooks' own use, from the beginning of the request to its end.
    """

    id: str
    dialect: str
    caller: str
    model: str | None
    stream: bool
    body: Mapping[str, Any] | None = field(repr=False)
    own: Mapping[str, Any] | None = field(default=None, repr=False)
    notes: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class HookResponse:
    """An answer that is about to be sent to the caller.

    Args:
        instance: the name of the instance that answers.
        provider: that instance's provider.
        model: the upstream's name of the model.
        attempts: the number of attempts so far.
        body: a complete answer as a JSON value in the caller's dialect; None for a stream and for
            an answer that is not JSON.
    """

    instance: str
    provider: str
    model: str
    attempts: int
    body: Any = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class HookResult:
    """The result of a request.

    Args:
        instance: the name of the instance that answered, or was tried last; "" if none was.
        provider: that instance's provider.
        model: the upstream's name of the model.
        attempts: the number of attempts.
        status: the HTTP status; 499 if the caller disconnected.
        outcome: `success`, `failure`, `cancelled`, or an error's code.
        usage: the usage in OpenAI's shape; empty if unknown.
        first_ms: time until the first content, or until the complete answer, in ms.
        total_ms: time until the end, in ms.
    """

    instance: str
    provider: str
    model: str
    attempts: int
    status: int
    outcome: str
    usage: Mapping[str, Any]
    first_ms: float
    total_ms: float


class Hook:
    """The base class: override what you need.

    One object serves all requests; it is created without arguments.

    Attributes:
        api_version: the version of the plugin contract that the hook was written for.
        deadline_s: the longest time that each call may take, in seconds.
        fail_open: whether the request goes on if the hook fails.
    """

    api_version: ClassVar[int] = API_VERSION
    deadline_s: ClassVar[float] = 1.0
    fail_open: ClassVar[bool] = False

    async def before_routing(self, request: HookRequest) -> Mapping[str, Any] | None:
        """Inspect a request before an instance is chosen for it.

        Returns:
            A body to send instead, or None to keep it. Its `model` then counts as the one that the
            caller named. A changed body is sent as a chat, whatever the caller's dialect.

        Raises:
            Rejected: the request is not processed.
        """
        return None

    async def before_answer(self, request: HookRequest, response: HookResponse) -> Any:
        """Inspect an answer before its first byte is sent: complete, or the start of a stream.

        Returns:
            A body to send instead of a complete answer's, or None to keep it.

        Raises:
            Rejected: the caller gets this error instead.
        """
        return None

    async def at_end(self, request: HookRequest, result: HookResult) -> None:
        """Use the result of a request, after its answer; a failure here affects no caller."""


def overridden(hook: Hook) -> list[str]:
    """Return the names of the methods that a hook overrides: only these are called."""
    names = ("before_routing", "before_answer", "at_end")
    return [name for name in names if getattr(type(hook), name) is not getattr(Hook, name)]
