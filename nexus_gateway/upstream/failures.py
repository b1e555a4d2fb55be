"""What a failed answer means: for the instance, for the request, for the caller.

`classify` maps an HTTP answer that is not 2xx to a `Verdict`; a provider may judge first, by
`read_failure`. Reasons are in our own words: an exception's text may hold a URL, a body anything.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import aiohttp

from nexus_gateway.errors import error_object
from nexus_gateway.provider import RATE_LIMIT_PARK_S, CannotServe, Outcome, Verdict
from nexus_gateway.routing.attempts import AttemptFailed
from nexus_gateway.routing.instance import Instance
from nexus_gateway.upstream.response import HttpResponse
from nexus_gateway.wire.error_objects import NO_REASON, normalise_error, read_error
from nexus_gateway.wire.rate_limits import asked_to_wait_s, retry_after_s

logger = logging.getLogger("nexus_gateway")

# A failing upstream may ask for a longer pause; the circuit finds out earlier.
MAX_COOL_DOWN_S = 60.0
_REQUEST_ERRORS = frozenset({400, 404, 413, 414, 415, 422, 431})
_REASONS: tuple[tuple[type[Exception], str], ...] = (  # a subclass before its parent
    (aiohttp.ClientConnectorDNSError, "its host name was not found"),
    (aiohttp.ClientSSLError, "TLS failed"),
    (aiohttp.ConnectionTimeoutError, "could not be reached in time"),
    (aiohttp.ClientConnectorError, "refused the connection"),
    (aiohttp.ServerDisconnectedError, "closed the connection"),
    (aiohttp.ClientOSError, "reset the connection"),
    (aiohttp.InvalidURL, "its base URL is not valid"),
)
_QUOTA_CODES = frozenset({"insufficient_quota", "billing_hard_limit_reached"})


def classify(status: int, headers: Mapping[str, str], body: bytes, now_s: float) -> Verdict:
    """Judge an answer that is not 2xx, by the first bytes of its body and then its status.

    `now_s`: Unix seconds, for dates in `Retry-After`.
    """
    error = read_error(body)
    if error.get("code") in _QUOTA_CODES or error.get("type") in _QUOTA_CODES:
        return Verdict(Outcome.BAD_KEY, "the account has no quota left", status)
    if status == 429:
        wait_s = retry_after_s(headers, error, now_s)
        wait_s = RATE_LIMIT_PARK_S if wait_s is None else wait_s
        return Verdict(Outcome.RATE_LIMITED, "rate limited", status, wait_s)
    if status == 404 and error["message"] == NO_REASON:
        reason = "refused with 404 and no reason: is its address right?"
        return Verdict(Outcome.REFUSED, reason, status, error=error)
    if status in _REQUEST_ERRORS or (status == 403 and _is_moderation(error)):
        return Verdict(Outcome.REFUSED, f"refused with {status}", status, error=error)
    if status in (401, 403):
        return Verdict(Outcome.BAD_KEY, f"the key was refused ({status})", status)
    if status == 402:
        return Verdict(Outcome.BAD_KEY, "the account has no credit (402)", status)
    if 300 <= status < 400:
        return Verdict(Outcome.FAILURE, f"redirected ({status}), which is never followed", status)
    wait_s = asked_to_wait_s(headers, now_s) if status >= 500 else None
    park_s = None if wait_s is None else min(wait_s, MAX_COOL_DOWN_S)
    return Verdict(Outcome.FAILURE, f"answered {status}", status, park_s)


def _is_moderation(error: Mapping[str, Any]) -> bool:
    """Whether a 403 concerns the content, not the key."""
    metadata = error.get("metadata")
    if isinstance(metadata, dict) and ("reasons" in metadata or "flagged_input" in metadata):
        return True
    return error.get("code") in ("content_policy_violation", "content_filter", "moderation")


def failure(reason: str) -> AttemptFailed:
    return AttemptFailed(Verdict(Outcome.FAILURE, reason))


def judge(instance: Instance, response: HttpResponse, body: bytes) -> Verdict:
    """Return the provider's verdict on an answer that is not 2xx, else the default one."""
    try:
        verdict = instance.provider.read_failure(response.status, response.headers, body)
        if not isinstance(verdict, Verdict | None):
            raise TypeError("read_failure returned something that is not a Verdict")
    except Exception:
        logger.exception("the plugin %s failed to read a failure", instance.plugin)
        verdict = None
    if verdict is None:
        return classify(response.status, response.headers, body, time.time())
    if verdict.outcome is Outcome.REFUSED and verdict.error is None:
        status = verdict.status or response.status
        return replace(verdict, status=status, error=read_error(body))
    return verdict


def connection_reason(error: Exception) -> str:
    """Return what failed below HTTP."""
    return next((text for kind, text in _REASONS if isinstance(error, kind)), "violated HTTP")


@contextmanager
def plugin_errors(instance: Instance) -> Iterator[None]:
    """Turn exceptions of a plugin's code into failed attempts; the traceback goes to the log."""
    try:
        yield
    except Exception as error:
        raise plugin_failed(instance, error) from error


def plugin_failed(instance: Instance, error: Exception) -> AttemptFailed:
    """Log an exception of a plugin's code and return the attempt's failure."""
    if isinstance(error, CannotServe):
        return AttemptFailed(refusal(error))
    logger.error("the plugin %s failed on a request", instance.plugin, exc_info=error)
    return failure("the provider's plugin failed")


def refusal(error: CannotServe) -> Verdict:
    """The backend lacks what is asked for: the caller's to know, and no fault of the instance."""
    body = error_object(error.message, kind="invalid_request_error", param=error.param)
    return Verdict(Outcome.REFUSED, "cannot serve this", 400, error=normalise_error(body["error"]))


def rejects_stream_options(verdict: Verdict) -> bool:
    """Whether a refusal may concern the request for a stream's usage: it names the field."""
    error = str(verdict.error)
    names_it = "stream_options" in error or "include_usage" in error
    return names_it and verdict.outcome is Outcome.REFUSED
