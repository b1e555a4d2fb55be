"""Every error of the gateway, as one tree.

    GatewayError                 a response to the caller: status, OpenAI error object, headers
    ├── InvalidRequest     400   the body or a header is wrong; `param` names it
    │   ├── NotFound       404   no such path, model or instance
    │   ├── MethodNotAllowed 405
    │   ├── RequestTimeout 408   the caller stopped sending the body
    │   ├── TooLarge       413   the body is larger than MAX_BODY_MB
    │   ├── UnsupportedMedia 415 the body's type or encoding is not supported
    │   ├── UnknownExpectation 417 the header `Expect` is not 100-continue
    │   └── UnsupportedVersion 505 HTTP is neither 1.1 nor 1.0
    ├── Unauthorized       401   no valid key
    ├── Forbidden          403   the key is valid, but the call is not allowed on this gateway
    ├── UpstreamRefused 4xx/508  an upstream rejected the request for its content; passed through
    ├── NoCandidate    429/503   no instance can serve the request now
    │   └── NoCapableModel 400   none that the request may go to takes what it holds
    ├── Overloaded         503   the gateway is at its limit of requests or file descriptors
    │   └── BodiesOverloaded     … or of memory for large request bodies
    ├── Draining           503   the gateway is shutting down
    ├── StoreUnavailable   503   the kept responses cannot be read
    ├── DeadlinePassed     504   the caller's own time limit has passed
    ├── LoopDetected       508   the request has passed this gateway before
    ├── NotInstalled       501   the call needs an extra that is not installed
    ├── HookFailed         500   a hook failed that must not; the cause is not disclosed
    ├── InternalError      500   a bug in the gateway; only the request's id is disclosed
    └── hooks.Rejected     4xx   a hook rejected the request
    BrokenStream                 a response that broke after its first token
    ├── TruncatedStream          it ended without finish_reason and [DONE]
    ├── IdleStream               nothing arrived for IDLE_TIMEOUT_MS
    ├── EndlessStream            it took longer than STREAM_TIMEOUT_MS
    ├── PluginBroke              the provider's plugin failed
    └── ErrorEvent               it contained an error object
    ConfigError                  wrong settings: stops the start, or a reload

The texts of a GatewayError are the gateway's own. They never contain a key or the text of a foreign
exception.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import ceil
from typing import Any, ClassVar

# The official clients give up if they are asked to wait longer.
LONGEST_ADVISED_WAIT_S = 120.0


def error_object(
    message: str, *, kind: str, param: str | None = None, code: str | None = None
) -> dict[str, Any]:
    """Build OpenAI's error object; absent values are null."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


class GatewayError(Exception):
    """A response that is an error.

    `kind` is OpenAI's `type`, `param` the field at fault; `headers` are added to the response's.
    A class whose message is always the same has it as `text`.
    """

    status = 500
    kind = "server_error"
    code: str | None = None
    text = ""
    more_headers: ClassVar[Mapping[str, str]] = {}

    def __init__(
        self,
        message: str = "",
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self.message = message or self.text
        super().__init__(self.message)
        self.param = param
        self.code = code if code is not None else type(self).code
        self.headers: dict[str, str] = {**self.more_headers, **(headers or {})}

    def body(self) -> dict[str, Any]:
        """Return the OpenAI error object."""
        return error_object(self.message, kind=self.kind, param=self.param, code=self.code)


class InvalidRequest(GatewayError):
    status = 400
    kind = "invalid_request_error"


class NotFound(InvalidRequest):
    status = 404


class MethodNotAllowed(InvalidRequest):
    status = 405
    code = "method_not_allowed"


class RequestTimeout(InvalidRequest):
    status = 408
    code = "request_timeout"
    text = "Timed out while reading the request body."


class TooLarge(InvalidRequest):
    status = 413
    code = "request_too_large"


class UnsupportedMedia(InvalidRequest):
    status = 415
    code = "unsupported_media_type"


class UnknownExpectation(InvalidRequest):
    status = 417
    code = "unknown_expectation"
    text = "The header `Expect` may only be 100-continue: remove it."


class UnsupportedVersion(InvalidRequest):
    status = 505
    code = "unsupported_http_version"
    text = "This port speaks HTTP/1.1 and HTTP/1.0."
    more_headers: ClassVar = {"Connection": "close"}


class Unauthorized(GatewayError):
    status = 401
    kind = "authentication_error"
    code = "invalid_api_key"
    more_headers: ClassVar = {"WWW-Authenticate": "Bearer"}


class Forbidden(GatewayError):
    status = 403
    kind = "permission_error"


class UpstreamRefused(GatewayError):
    """An upstream's rejection of the request, passed through with its status and error object."""

    code = "upstream_refused"  # for the log; the caller gets the upstream's own code

    def __init__(self, status: int, error: Mapping[str, Any]) -> None:
        # Clients take a 5xx for a hiccup.
        headers = {"x-should-retry": "false"} if status >= 500 else None
        super().__init__(str(error.get("message", "")), headers=headers)
        self.status = status
        self._error = dict(error)

    def body(self) -> dict[str, Any]:
        return {"error": self._error}


class NoCandidate(GatewayError):
    """No instance can serve the request now; the message is what was tried and what to do.

    It is a 429 if every candidate waits for a rate limit, else a 503. `retry_after_s` is how soon
    the gateway itself would try one, None if waiting changes nothing; clients are told to do the
    same, unless that is longer than they wait.
    """

    def __init__(
        self,
        message: str,
        *,
        rate_limited: bool = False,
        retry_after_s: float | None = None,
        code: str | None = None,
    ) -> None:
        self.status = 429 if rate_limited else 503
        self.kind = "rate_limit_error" if rate_limited else "server_error"
        headers = {"x-should-retry": "false"}
        if retry_after_s is not None:
            headers["Retry-After"] = str(max(1, ceil(retry_after_s)))
            if retry_after_s <= LONGEST_ADVISED_WAIT_S:
                headers["x-should-retry"] = "true"
        self.retry_after_s = retry_after_s
        code = code or ("rate_limit_exceeded" if rate_limited else "no_candidate")
        super().__init__(message, code=code, headers=headers)


class NoCapableModel(NoCandidate):
    """No enabled model that the request may go to takes images: waiting changes nothing."""

    def __init__(self) -> None:
        super().__init__(
            "The request holds an image, and no enabled model that `model` may mean takes images: "
            "remove the image, name another model, or configure a multimodal one.",
            code="no_capable_model",
        )
        self.status, self.kind, self.param = 400, InvalidRequest.kind, "messages"


class Overloaded(GatewayError):
    status = 503
    code = "overloaded"
    text = "The gateway is at capacity; try again in a moment."
    more_headers: ClassVar = {"Retry-After": "1", "x-should-retry": "true"}


class BodiesOverloaded(Overloaded):
    code = "bodies_overloaded"
    text = (
        "The large request bodies that the gateway is serving take all the memory that they may; "
        "try again in a moment, or send a smaller body."
    )


class Draining(GatewayError):
    status = 503
    code = "shutting_down"
    text = "The gateway is shutting down; try again in a moment."
    more_headers: ClassVar = {**Overloaded.more_headers, "Connection": "close"}


class StoreUnavailable(GatewayError):
    status = 503
    code = "store_unavailable"
    text = (
        "The gateway cannot read the responses it has kept: try again in a moment, or send the "
        "whole conversation in `input`."
    )
    more_headers: ClassVar = Overloaded.more_headers


class DeadlinePassed(GatewayError):
    status = 504
    code = "deadline_exceeded"
    text = (
        "No response within the request's X-Request-Timeout-Ms; allow more time or omit the header."
    )
    more_headers: ClassVar = {"x-should-retry": "false"}


class LoopDetected(GatewayError):
    status = 508
    code = "loop_detected"
    text = (
        "This request has passed this gateway before: the address of one of its providers leads "
        "back to it. Set that NAME_BASE_URL to the provider's own address."
    )
    more_headers: ClassVar = {"x-should-retry": "false"}


class NotInstalled(GatewayError):
    """The call needs an extra of this package; `feature` is a plural that begins a sentence."""

    status = 501
    code = "not_installed"

    def __init__(self, feature: str, extra: str) -> None:
        super().__init__(
            f"{feature} need the extra `{extra}`, which is not installed: run pip install "
            f"'.[{extra}]' in the gateway's clone and restart the gateway."
        )


class HookFailed(GatewayError):
    code = "hook_failed"
    text = (
        "A hook of this gateway failed, so the request was not processed. Try again; if the error "
        "persists, the gateway's log has the details."
    )


class InternalError(GatewayError):
    code = "internal_error"

    def __init__(self, request_id: str) -> None:
        super().__init__(f"Internal error. The gateway's log has the details under {request_id}.")


class BrokenStream(Exception):
    """A response that cannot be completed; its text is for the caller.

    `reason` is for operators, in the gateway's words and not the upstream's.
    """

    code = "upstream_stream_error"
    reason = "sent something that is not an answer"

    def body(self) -> dict[str, Any]:
        """Return the error object that ends the stream."""
        return error_object(str(self), kind="server_error", code=self.code)


class TruncatedStream(BrokenStream):
    reason = "cut its answer off"


class IdleStream(BrokenStream):
    code = "upstream_idle_timeout"
    reason = "stopped sending"

    def __init__(self) -> None:
        super().__init__("The upstream stopped sending in the middle of its answer.")


class EndlessStream(BrokenStream):
    code = "stream_timeout"
    reason = "did not come to an end"

    def __init__(self) -> None:
        super().__init__(
            "The answer took longer than this gateway allows (STREAM_TIMEOUT_MS); ask for a "
            "shorter one, or have the limit raised."
        )


class PluginBroke(BrokenStream):
    reason = "the provider's plugin failed"


class ErrorEvent(BrokenStream):
    """`error` is the upstream's error, in OpenAI's shape."""

    reason = "sent an error instead of an answer"

    def __init__(self, error: Mapping[str, Any]) -> None:
        super().__init__(str(error.get("message", "")))
        self.error = dict(error)

    def body(self) -> dict[str, Any]:
        return {"error": self.error}


class ConfigError(Exception):
    """Settings that cannot be used: one line for each, with its name and never its value."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = tuple(problems)
