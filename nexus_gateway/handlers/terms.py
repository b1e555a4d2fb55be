"""What a caller wants beside the answer, as headers say it."""

from __future__ import annotations

from aiohttp import web

from nexus_gateway.errand import Terms
from nexus_gateway.errors import InvalidRequest
from nexus_gateway.handlers.gateway import Gateway
from nexus_gateway.routing import DEFAULT_POLICY
from nexus_gateway.settings import LONGEST_MS, read_flag

POLICY = "X-Routing-Mode"
HEDGE = "X-Nexus-Hedge"
TIMEOUT = "X-Request-Timeout-Ms"


def terms_of(request: web.Request, gateway: Gateway) -> Terms:
    """Return a caller's terms.

    Raises:
        InvalidRequest: a header says what it may not.
    """
    policy = request.headers.get(POLICY, DEFAULT_POLICY).strip().lower()
    known = gateway.scheduler.policies
    if policy not in known:
        raise InvalidRequest(
            f"{POLICY} must be one of: {', '.join(known)}.",
            param=POLICY,
            code="unknown_routing_mode",
        )
    return Terms(policy, _hedge(request, gateway), _timeout_s(request))


def _timeout_s(request: web.Request) -> float | None:
    text = request.headers.get(TIMEOUT)
    if text is None:
        return None
    digits = text.strip().lstrip("0")  # else a row of them hides how long the number is
    if not (digits.isascii() and digits.isdigit()) or int(digits[:18]) > LONGEST_MS:
        raise InvalidRequest(
            f"{TIMEOUT} must be a whole number from 1 to {LONGEST_MS}.",
            param=TIMEOUT,
            code="invalid_timeout",
        )
    return int(digits) / 1000


def _hedge(request: web.Request, gateway: Gateway) -> bool:
    text = request.headers.get(HEDGE)
    if text is None:
        return gateway.settings.hedge
    try:
        return read_flag(text)
    except ValueError:
        raise InvalidRequest(
            f"{HEDGE} must be true or false.", param=HEDGE, code="invalid_hedge"
        ) from None
