"""Every error of the gateway, as one tree.

    GatewayError                 has a status, an OpenAI error object and headers
    ├── InvalidRequest     400   the body or a header is wrong; `param` says where
    ├── Unauthorized       401   no valid key
    ├── Forbidden          403   the key is valid, the call is not allowed here
    ├── NotFound           404   no such path, model or instance
    ├── MethodNotAllowed   405
    ├── RequestTimeout     408   the caller fell silent in the middle of the body
    ├── TooLarge           413
    ├── UnsupportedMedia   415
    ├── UpstreamRefused    4xx   an upstream found fault with the request itself
    ├── NoCandidate    429/503   nobody is left to serve the request
    ├── Overloaded         503   the gateway has more to do than it may
    ├── Draining           503   the gateway is about to exit
    ├── DeadlinePassed     504   the caller's own time limit is over
    ├── NotInstalled       501   the call needs an extra that is not installed
    ├── HookFailed         500   a hook failed that must not; says nothing of the cause
    └── InternalError      500   a fault of our own; says nothing but the request's id
    ConfigError                  bad settings: stops the start (not an answer to a caller)

Whatever is raised towards a caller is a GatewayError; its texts are ours alone and never
hold a key or the text of a foreign exception.

How an answer may break after its first token, as one tree.

BrokenStream                 an answer died after its first token
├── TruncatedStream          it ended without finish_reason and [DONE]
├── IdleStream               it said nothing for too long
├── PluginBroke              the plugin that makes it failed
└── ErrorEvent               it carried an error object
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

SHORTEST_RETRY_AFTER_S = 1


def error_object(
    message: str, *, kind: str, param: str | None = None, code: str | None = None
) -> dict[str, Any]:
    """Build OpenAI's error envelope; absent values are null."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


class GatewayError(Exception):
    """An answer that is an error.

    Attributes:
        status: the HTTP status.
        kind: OpenAI's `type`.
        code: OpenAI's `code`, or None.
        param: the field at fault, or None.
        headers: more headers for the answer.
    """

    status = 500
    kind = "server_error"
    code: str | None = None

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.code = code if code is not None else type(self).code
        self.headers: dict[str, str] = dict(headers or {})

    def body(self) -> dict[str, Any]:
        """Return the OpenAI error object."""
        return error_object(self.message, kind=self.kind, param=self.param, code=self.code)


class InvalidRequest(GatewayError):
    """The caller's request is wrong."""

    status = 400
    kind = "invalid_request_error"


class Unauthorized(GatewayError):
    """The call needs a key that it does not have."""

    status = 401
    kind = "authentication_error"
    code = "invalid_api_key"

    def __init__(self, message: str) -> None:
        super().__init__(message, headers={"WWW-Authenticate": "Bearer"})


class Forbidden(GatewayError):
    """The call is not allowed on this gateway as it is configured."""

    status = 403
    kind = "permission_error"


class NotFound(InvalidRequest):
    """There is no such path, model or instance."""

    status = 404


class MethodNotAllowed(InvalidRequest):
    """The path exists, the method does not."""

    status = 405
    code = "method_not_allowed"


class RequestTimeout(InvalidRequest):
    """The caller fell silent in the middle of the body."""

    status = 408
    code = "request_timeout"

    def __init__(self) -> None:
        super().__init__("The body did not come to its end in time; send it again.")


class TooLarge(InvalidRequest):
    """The body is larger than MAX_BODY_MB."""

    status = 413
    code = "request_too_large"


class UnsupportedMedia(InvalidRequest):
    """The body has a type or an encoding that is not taken."""

    status = 415
    code = "unsupported_media_type"


class UpstreamRefused(GatewayError):
    """An upstream refused the request for what it says; passed on as it came."""

    code = "upstream_refused"  # for the log: the caller gets the upstream's own

    def __init__(self, status: int, error: Mapping[str, Any]) -> None:
        super().__init__(str(error.get("message", "")))
        self.status = status
        self._error = dict(error)

    def body(self) -> dict[str, Any]:
        """Return the upstream's own error object."""
        return {"error": self._error}


class NoCandidate(GatewayError):
    """No instance can serve the request now.

    Args:
        message: what was tried and what to do.
        rate_limited: every candidate waits for a rate limit (429 instead of 503).
        retry_after_s: the soonest moment a candidate returns, or None when none will.
        should_retry: whether it is worth a caller's while to try again.
        code: OpenAI's `code`.
    """

    def __init__(
        self,
        message: str,
        *,
        rate_limited: bool = False,
        retry_after_s: float | None = None,
        should_retry: bool = False,
        code: str | None = None,
    ) -> None:
        self.status = 429 if rate_limited else 503
        self.kind = "rate_limit_error" if rate_limited else "server_error"
        headers = {"x-should-retry": "true" if should_retry else "false"}
        if retry_after_s is not None:
            headers["Retry-After"] = str(max(SHORTEST_RETRY_AFTER_S, -int(-retry_after_s // 1)))
        self.retry_after_s = retry_after_s
        code = code or ("rate_limit_exceeded" if rate_limited else "no_candidate")
        super().__init__(message, code=code, headers=headers)


class Draining(GatewayError):
    """The gateway is shutting down and takes nothing new."""

    status = 503
    code = "shutting_down"

    def __init__(self) -> None:
        super().__init__(
            "The gateway is shutting down; try again in a moment.",
            headers={"Retry-After": "1", "Connection": "close", "x-should-retry": "true"},
        )


class DeadlinePassed(GatewayError):
    """The time that the caller gave is over."""

    status = 504
    code = "deadline_exceeded"

    def __init__(self) -> None:
        super().__init__(
            "The answer was not there within the X-Request-Timeout-Ms that the request gave; "
            "allow more time, or leave the header out.",
            headers={"x-should-retry": "false"},
        )


class Overloaded(GatewayError):
    """The gateway serves as many requests as it may, or as it has file descriptors for."""

    status = 503
    code = "overloaded"

    def __init__(self) -> None:
        super().__init__(
            "The gateway serves as many requests as it can; try again in a moment.",
            headers={"Retry-After": "1", "x-should-retry": "true"},
        )


class NotInstalled(GatewayError):
    """The call needs an extra of this package; `what` does, as a sentence begins."""

    status = 501
    code = "not_installed"

    def __init__(self, what: str, extra: str) -> None:
        super().__init__(
            f"{what} need an extra that is not installed here: "
            f"in its clone, pip install '.[{extra}]', and start it again."
        )


class HookFailed(GatewayError):
    """A hook failed, and nothing may pass without it."""

    code = "hook_failed"

    def __init__(self) -> None:
        super().__init__(
            "A check that this gateway makes has failed, so the request was not served. Try again; "
            "if it stays, the gateway's log has the details."
        )


class InternalError(GatewayError):
    """A fault of the gateway itself."""

    code = "internal_error"

    def __init__(self, request_id: str) -> None:
        super().__init__(
            f"The gateway failed on this request. The log has the details under id {request_id}."
        )


class ConfigError(Exception):
    """Settings that cannot be used.

    Args:
        problems: one line for each, naming its variable and never its value.
    """

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = tuple(problems)


class BrokenStream(Exception):
    """An answer that cannot be finished; the text is fit for the caller.

    Attributes:
        code: OpenAI's `code`.
        reason: what happened, for operators, in our words: what an upstream says is left out.
    """

    code = "upstream_stream_error"
    reason = "sent something that is not an answer"

    def body(self) -> dict[str, Any]:
        """Return the error object that ends the stream."""
        return error_object(str(self), kind="server_error", code=self.code)


class TruncatedStream(BrokenStream):
    """The upstream ended before the answer did."""

    reason = "cut its answer off"


class IdleStream(BrokenStream):
    """The upstream fell silent in the middle of the answer."""

    code = "upstream_idle_timeout"
    reason = "fell silent"

    def __init__(self) -> None:
        super().__init__("The upstream fell silent in the middle of its answer.")


class PluginBroke(BrokenStream):
    """The provider's plugin failed, or cannot go on."""

    reason = "the provider's plugin failed"


class ErrorEvent(BrokenStream):
    """The upstream sent an error object inside its stream.

    Args:
        error: the upstream's error, already in OpenAI's shape.
    """

    reason = "sent an error instead of an answer"

    def __init__(self, error: Mapping[str, Any]) -> None:
        super().__init__(str(error.get("message", "")))
        self.error = dict(error)

    def body(self) -> dict[str, Any]:
        """Return the upstream's own error object."""
        return {"error": self.error}
