"""What a failed answer means: for the instance, for the request, for the caller.

`classify` maps an HTTP answer that is not 2xx to a `Verdict`, and `judge_error` an error inside a
200 or a stream: by its meaning (`upstream.meanings`), then by its status. A provider may judge
first, by `read_failure`. Reasons are in our own words: an exception's text may hold a URL, a body
anything.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import aiohttp

from nexus_gateway.errors import error_object
from nexus_gateway.provider import RATE_LIMIT_PARK_S, CannotServe, Outcome, Scope, Verdict
from nexus_gateway.routing.attempts import AttemptFailed
from nexus_gateway.routing.instance import Instance
from nexus_gateway.upstream.meanings import meaning_of
from nexus_gateway.upstream.response import HttpResponse
from nexus_gateway.wire import json_codec
from nexus_gateway.wire.error_objects import NO_REASON, normalise_error, plain_text, read_error
from nexus_gateway.wire.rate_limits import asked_to_wait_s, retry_after_s

logger = logging.getLogger("nexus_gateway")

# A failing upstream may ask for a longer pause; the circuit finds out earlier.
MAX_COOL_DOWN_S = 60.0
_REQUEST_ERRORS = frozenset({400, 413, 414, 415, 422, 431})
_KEY_REASONS = {
    401: "the key was refused (401)",
    402: "the account has no credit (402)",
    403: "the key was refused (403)",
}
_REFUSED_STATUS = 400  # of a refusal inside a 200
_STATUS = re.compile("[45][0-9][0-9]")
_REASONS: tuple[tuple[type[Exception], str], ...] = (  # a subclass before its parent
    (aiohttp.ClientHttpProxyError, "the proxy (UPSTREAM_PROXY) refused the connection"),
    (aiohttp.ClientProxyConnectionError, "the proxy (UPSTREAM_PROXY) could not be reached"),
    (aiohttp.ClientConnectorDNSError, "its host name was not found"),
    (aiohttp.ClientSSLError, "TLS failed"),
    (TimeoutError, "could not be reached in time"),
    (aiohttp.ClientConnectorError, "refused the connection"),
    (aiohttp.ServerDisconnectedError, "closed the connection"),
    (aiohttp.ClientOSError, "reset the connection"),
    (aiohttp.InvalidURL, "its base URL is not valid"),
)


def classify(status: int, headers: Mapping[str, str], body: bytes, now_s: float) -> Verdict:
    """Judge an answer that is not 2xx, by the first bytes of its body and then its status.

    `now_s`: Unix seconds, for dates in `Retry-After`.
    """
    error = read_error(body)
    if error is not None:
        return _verdict(status, headers, error, now_s)
    if 400 <= status < 500 and status not in (404, 429):
        return _edge_verdict(status)
    verdict = _verdict(status, headers, normalise_error(plain_text(body)), now_s)
    if status == 429 and verdict.park_s is not None:  # of something that counts all keys together
        return replace(verdict, park_s=min(verdict.park_s, RATE_LIMIT_PARK_S))
    return verdict


def _verdict(
    status: int, headers: Mapping[str, str], error: Mapping[str, Any], now_s: float
) -> Verdict:
    meaning = meaning_of(status, error)
    if meaning is None:
        return _by_status(status, headers, error, now_s)
    reason = f"{meaning.reason} ({status})" if status else meaning.reason
    shown = error if meaning.outcome is Outcome.REFUSED else None
    status = status or _REFUSED_STATUS
    return Verdict(meaning.outcome, reason, status, error=shown, scope=meaning.scope)


def _by_status(
    status: int, headers: Mapping[str, str], error: Mapping[str, Any], now_s: float
) -> Verdict:
    if status == 429:
        wait_s = retry_after_s(headers, error, now_s)
        wait_s = RATE_LIMIT_PARK_S if wait_s is None else wait_s
        return Verdict(Outcome.RATE_LIMITED, "rate limited", status, wait_s)
    if status == 404:
        reason = "refused with 404"
        if error["message"] == NO_REASON:
            reason += " and no reason: is its address right?"
        return Verdict(Outcome.REFUSED, reason, status, error=error, scope=Scope.DEPLOYMENT)
    if status == 508 and error["message"] != NO_REASON:  # `LoopDetected`, of a gateway behind this
        reason = "its address leads back here (508)"
        return Verdict(Outcome.REFUSED, reason, status, error=error, scope=Scope.ADDRESS)
    if status in _REQUEST_ERRORS:
        return Verdict(Outcome.REFUSED, f"refused with {status}", status, error=error)
    if status in _KEY_REASONS:
        shown = None if status == 401 else error  # of a second key, it is the request's
        return Verdict(Outcome.BAD_KEY, _KEY_REASONS[status], status, error=shown)
    if 300 <= status < 400:
        return Verdict(Outcome.FAILURE, f"redirected ({status}), which is never followed", status)
    wait_s = asked_to_wait_s(headers, now_s) if status >= 500 else None
    park_s = None if wait_s is None else min(wait_s, MAX_COOL_DOWN_S)
    reason = f"answered {status}" if status else "sent an error instead of an answer"
    return Verdict(Outcome.FAILURE, reason, status, park_s)


def _edge_verdict(status: int) -> Verdict:
    """Judge a 4xx without an API's error: a proxy or firewall in front of the API sent it."""
    error = error_object(
        f"The upstream answered {status} without an error of its API; a firewall in front of it "
        "may have blocked the request.",
        kind="upstream_error",
    )["error"]
    reason = f"refused by something before its API ({status})"
    return Verdict(Outcome.FAILURE, reason, status, error=error, scope=Scope.EDGE)


def failure(reason: str, scope: Scope = Scope.REQUEST) -> AttemptFailed:
    return AttemptFailed(Verdict(Outcome.FAILURE, reason, scope=scope))


def judge(instance: Instance, response: HttpResponse, body: bytes) -> Verdict:
    """Return the provider's verdict on an answer that is not 2xx, else the default one."""
    verdict = _providers_verdict(instance, response.status, response.headers, body)
    return verdict or classify(response.status, response.headers, body, time.time())


def judge_error(instance: Instance, error: Mapping[str, Any]) -> Verdict:
    """Return the verdict on an error that came inside a 200, by the status that it names, if any.

    `error` is in OpenAI's shape.
    """
    code = error.get("code")
    status = int(code) if isinstance(code, str) and _STATUS.fullmatch(code) else 0
    body = json_codec.dumps({"error": error})
    verdict = _providers_verdict(instance, status, {}, body)
    return verdict or _verdict(status, {}, error, time.time())


def _providers_verdict(
    instance: Instance, status: int, headers: Mapping[str, str], body: bytes
) -> Verdict | None:
    try:
        verdict = instance.provider.read_failure(status, headers, body)
        if not isinstance(verdict, Verdict | None):
            raise TypeError("read_failure returned something that is not a Verdict")
    except Exception:
        logger.exception("the plugin %s failed to read a failure", instance.plugin)
        return None
    if verdict is not None and verdict.outcome is Outcome.REFUSED and verdict.error is None:
        error = read_error(body) or normalise_error(None)
        return replace(verdict, status=verdict.status or status or _REFUSED_STATUS, error=error)
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
