from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import replace
from types import TracebackType
from typing import Any

import aiohttp

from nexus_gateway.errors import error_object
from nexus_gateway.provider import RATE_LIMIT_PARK_S, CannotServe, Outcome, Verdict
from nexus_gateway.routing.instance import Instance
from nexus_gateway.upstream.response import HttpResponse
from nexus_gateway.wire.error_objects import _NO_REASON, normalise_error, read_error
from nexus_gateway.wire.rate_limits import asked_to_wait_s, retry_after_s

logger = logging.getLogger("nexus_gateway")

# Whoever fails is not believed that he will for longer: his circuit finds out.
MAX_COOL_DOWN_S = 60.0
_REQUEST_ERRORS = frozenset({400, 413, 414, 415, 422, 431})
_QUOTA_CODES = frozenset({"insufficient_quota", "billing_hard_limit_reached"})


def classify(status: int, headers: Mapping[str, str], body: bytes, now_s: float) -> Verdict:
    """Judge an answer that is not 2xx.

    Args:
        status: the HTTP status.
        headers: the answer's headers, case-insensitive.
        body: the first bytes of its body.
        now_s: the wall clock in Unix seconds, for dates in `Retry-After`.
    """
    error = read_error(body)
    if error.get("code") in _QUOTA_CODES or error.get("type") in _QUOTA_CODES:
        return Verdict(Outcome.BAD_KEY, "the account has no quota left", status)
    if status == 429:
        wait_s = retry_after_s(headers, error, now_s)
        return Verdict(
            Outcome.RATE_LIMITED,
            "rate limited",
            status,
            RATE_LIMIT_PARK_S if wait_s is None else wait_s,
        )
    if status == 404 and error["message"] == _NO_REASON:
        reason = "refused with 404 and no reason: is its address right?"
        return Verdict(Outcome.REFUSED, reason, status, error=error)
    if (
        status in _REQUEST_ERRORS
        or status == 404
        or (status == 403 and _is_moderation(error, body))
    ):
        return Verdict(Outcome.REFUSED, f"refused with {status}", status, error=error)
    if status in (401, 403):
        return Verdict(Outcome.BAD_KEY, f"the key was refused ({status})", status)
    if status == 402:
        return Verdict(Outcome.BAD_KEY, "the account has no credit (402)", status)
    if 300 <= status < 400:
        return Verdict(Outcome.FAILURE, f"redirected ({status}), which is never followed", status)
    rest_s = asked_to_wait_s(headers, now_s) if status >= 500 else None
    longest_s = None if rest_s is None else min(rest_s, MAX_COOL_DOWN_S)
    return Verdict(Outcome.FAILURE, f"answered {status}", status, longest_s)


def _is_moderation(error: Mapping[str, Any], body: bytes) -> bool:
    """Tell a 403 for the content from a 403 for the key."""
    metadata = error.get("metadata")
    if isinstance(metadata, dict) and ("reasons" in metadata or "flagged_input" in metadata):
        return True
    return error.get("code") in ("content_policy_violation", "content_filter", "moderation")


class AttemptFailed(Exception):
    """An attempt that brought no answer.

    Args:
        verdict: why, and what it means.
    """

    def __init__(self, verdict: Verdict) -> None:
        super().__init__(verdict.reason)
        self.verdict = verdict


def failure(reason: str) -> AttemptFailed:
    """Make a failure that is the instance's."""
    return AttemptFailed(Verdict(Outcome.FAILURE, reason))


def _judge(instance: Instance, response: HttpResponse, body: bytes) -> Verdict:
    """Let the provider judge first, then the table."""
    try:
        verdict = instance.provider.read_failure(response.status, response.headers, body)
        if not isinstance(verdict, Verdict | None):
            raise TypeError("read_failure returned something that is no verdict")
    except Exception:
        logger.exception("the plugin %s failed to read a failure", instance.plugin)
        verdict = None
    if verdict is None:
        return classify(response.status, response.headers, body, time.time())
    if verdict.outcome is Outcome.REFUSED and verdict.error is None:
        status = verdict.status or response.status
        return replace(verdict, status=status, error=read_error(body))
    return verdict


def _connection_reason(error: Exception) -> str:
    """Say what went wrong below HTTP, in our words: an exception's own may hold a URL."""
    kinds: list[tuple[type[Exception], str]] = [
        (aiohttp.ClientConnectorDNSError, "its host name was not found"),
        (aiohttp.ClientSSLError, "TLS failed"),
        (aiohttp.ConnectionTimeoutError, "could not be reached in time"),
        (aiohttp.ClientConnectorError, "refused the connection"),
        (aiohttp.ServerDisconnectedError, "closed the connection"),
        (aiohttp.ClientOSError, "reset the connection"),
        (aiohttp.InvalidURL, "its base URL is not valid"),
    ]
    return next((words for kind, words in kinds if isinstance(error, kind)), "broke HTTP's rules")


class plugin_errors:  # noqa: N801 - it is used as a word
    """Turn what a plugin's code raises into a failed attempt; the traceback stays in the log.

    Args:
        instance: whose plugin is at work in the `with` block.
    """

    __slots__ = ("_instance",)

    def __init__(self, instance: Instance) -> None:
        self._instance = instance

    def __enter__(self) -> None:
        pass

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if isinstance(error, CannotServe):
            raise AttemptFailed(refusal(error)) from error
        if isinstance(error, Exception):
            logger.exception("the plugin %s failed on a request", self._instance.plugin)
            raise failure("the provider's plugin failed") from error


def refusal(error: CannotServe) -> Verdict:
    """Judge what a backend lacks: the caller's to know, and nobody's fault."""
    body = error_object(error.message, kind="invalid_request_error", param=error.param)
    return Verdict(Outcome.REFUSED, "cannot serve this", 400, error=normalise_error(body["error"]))


def rejects_stream_options(verdict: Verdict) -> bool:
    """Tell whether a refusal may be for having asked for a stream's usage: it names the field."""
    said = str(verdict.error)
    return verdict.outcome is Outcome.REFUSED and (
        "stream_options" in said or "include_usage" in said
    )
