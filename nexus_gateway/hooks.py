"""The hook contract: look at requests and answers on their way. Version 1, as for providers.

A hook is a class and an entry point in the group `nexus_gateway.hooks`:

    [options.entry_points]
    nexus_gateway.hooks =
        no-secrets = nexus_acme:NoSecrets

Whatever hook is installed is at work, in the order of the names. Each method that a class
overrides is called; one that it does not override costs nothing. A hook that cannot be loaded
stops the start: a gateway without it might let through what it should stop.

A hook that raises anything but `Rejected`, or is not done within `deadline_s`, has failed. Then the
request is refused with a 500 that tells nothing of the cause (`fail_open = False`), or goes on as
if the hook were not there (`fail_open = True`). `at_end` comes after the answer and can hold
nothing up.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from nexus_gateway.errors import GatewayError
from nexus_gateway.provider import API_VERSION


class Rejected(GatewayError):
    """Raised by a hook: the caller gets this and nothing else.

    Args:
        message: for the caller.
        status: 4xx.
        code: OpenAI's `code`.
        param: the field at fault, if one is.
    """

    kind = "invalid_request_error"

    def __init__(
        self, message: str, *, status: int = 403, code: str = "refused", param: str | None = None
    ) -> None:
        super().__init__(message, code=code, param=param)
        self.status = status if 400 <= status < 500 else 403


@dataclass(slots=True)
class HookRequest:
    """A request on its way.

    Args:
        id: the request's id.
        dialect: the endpoint that it came to: `chat`, `messages`, `responses`, `embeddings`, …
        caller: who asks: `key-2` for the second of GATEWAY_KEYS, "" where none are set.
        model: the model asked for, None when absent.
        stream: whether the answer is streamed.
        body: the request as a chat, whatever the dialect; where it has no such form the body as
            it came, and None for a form with a file. Do not change it: return another.
        own: the body as it came, in the caller's dialect. Where the backend speaks that dialect
            and no hook changes `body`, this is what goes to it: it may say more than a chat can.
        notes: for the hooks' own use, from the beginning of a request to its end.
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
    """An answer that is about to go to the caller.

    Args:
        instance: who answers.
        provider: that instance's provider.
        model: the upstream's name of the model.
        attempts: how many it took.
        body: a whole answer, in the caller's dialect; None for a stream (and for plain text).
    """

    instance: str
    provider: str
    model: str
    attempts: int
    body: Any = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class HookResult:
    """What became of a request.

    Args:
        instance: who answered or was asked last, "" when nobody was.
        provider: that instance's provider.
        model: the upstream's name of the model.
        attempts: how many were made.
        status: the HTTP status; 499 when the caller left.
        outcome: `success`, `failure`, `cancelled`, or an error's code.
        usage: what was used, in OpenAI's shape; empty when unknown.
        first_ms: until the first content, or the whole answer.
        total_ms: until the end.
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
    """Override what you need. One object serves all requests; it is made without arguments.

    Attributes:
        api_version: the version of the plugin contract that it was written for.
        deadline_s: how long each call may take.
        fail_open: whether a request goes on when the hook fails.
    """

    api_version: ClassVar[int] = API_VERSION
    deadline_s: ClassVar[float] = 1.0
    fail_open: ClassVar[bool] = False

    async def before_routing(self, exchange: HookRequest) -> Mapping[str, Any] | None:
        """Look at a request before anybody is chosen for it.

        Returns:
            A body to send instead (its `model` then counts as what the caller asked for), or
            None to leave it. A changed body goes as a chat, whatever the caller's dialect.

        Raises:
            Refused: the request goes no further.
        """
        return None

    async def before_answer(self, exchange: HookRequest, answer: HookResponse) -> Any:
        """Look at an answer before its first byte goes out: whole, or the beginning of a stream.

        Returns:
            A body to send instead of a whole answer's, or None to leave it.

        Raises:
            Refused: the caller gets this instead.
        """
        return None

    async def at_end(self, exchange: HookRequest, used: HookResult) -> None:
        """Learn what became of a request, after its answer; failing here hurts nobody."""


def overridden(hook: Hook) -> list[str]:
    """Return the names of the methods that a hook overrides, and is called by."""
    names = ("before_routing", "before_answer", "at_end")
    return [name for name in names if getattr(type(hook), name) is not getattr(Hook, name)]
