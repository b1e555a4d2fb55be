"""GET /v1/usage."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping
from typing import Any

from aiohttp import web

from nexus_gateway.errors import GatewayError, InvalidRequest, NotFound
from nexus_gateway.telemetry.usage import NOTHING, InvalidQuery, UsageQuery, as_json, moment_s
from nexus_gateway.web.gateway import gateway_of
from nexus_gateway.web.request import json_response

logger = logging.getLogger("nexus_gateway")

_NAMES = ("by", "since", "until")


async def usage(request: web.Request) -> web.Response:
    """Report usage, of all workers and earlier runs; days and hours begin by UTC."""
    gateway = gateway_of(request)
    path, ledger = gateway.settings.ledger, gateway.ledger
    if not path:
        raise NotFound("No ledger is kept: LEDGER is off.", code="ledger_off")
    query = _query(request)
    if ledger is not None and ledger.is_refused:
        raise _unreadable("No ledger is kept, because its file cannot be used; see the log.")
    # In a thread: the ledger may be large.
    return json_response(await asyncio.to_thread(_report, path, query))


def _query(request: web.Request) -> UsageQuery:
    parameters = request.query
    for name in parameters:
        if name not in _NAMES:
            known = ", ".join(_NAMES)
            message = f"Unknown parameter {name!r}; the parameters are: {known}."
            raise InvalidRequest(message, param=name)
    now_s = time.time()
    since_s, until_s = (_moment_s(parameters.get(name), name, now_s) for name in _NAMES[1:])
    try:
        return UsageQuery(parameters.get("by") or "instance", since_s, until_s)
    except InvalidQuery as error:
        raise InvalidRequest(f"`by` {error}.", param="by") from None


def _moment_s(text: str | None, name: str, now_s: float) -> float | None:
    try:
        return moment_s(text, now_s, is_local=False) if text else None
    except InvalidQuery as error:
        raise InvalidRequest(f"`{name}` {error}.", param=name) from None


def _report(path: str, query: UsageQuery) -> Mapping[str, Any]:
    import sqlite3

    from nexus_gateway.store.database import DatabaseRefused
    from nexus_gateway.telemetry import ledger

    try:
        return as_json(query, ledger.ask(path, query) or NOTHING)
    except (OSError, sqlite3.Error, DatabaseRefused) as error:
        logger.warning("the ledger cannot be read: %s", error)
        raise _unreadable("The ledger cannot be read at the moment; see the log.") from None


def _unreadable(message: str) -> GatewayError:
    error = GatewayError(message, code="ledger_unreadable")
    error.status = 503
    return error
