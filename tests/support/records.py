"""A request that has ended well, for tests of whoever keeps count."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nexus_gateway.proxy.record import AttemptRecord, RequestRecord
from nexus_gateway.wire.usage import parse_usage


def ended(usage: Mapping[str, Any] | None = None, **more: object) -> RequestRecord:
    """Return a stream that the first instance answered at once, but for what is given.

    Args:
        usage: what it used, as an upstream tells it.
        more: fields that differ.
    """
    attempt = AttemptRecord("Fake (Key #1)", "fake", "success", "", 200, 5.0)
    made = RequestRecord(
        id="req-1",
        ended_s=1000.0,
        endpoint="chat",
        asked_model="fake",
        stream=True,
        policy="smart",
        caller="key-2",
        instance=attempt.instance,
        provider="fake",
        model="fake-large",
        attempts=(attempt,),
        hedged=False,
        resumed=0,
        status=200,
        outcome="success",
        first_ms=5.0,
        upstream_ms=5.0,
        total_ms=9.0,
        tokens=parse_usage(usage or {}),
        billed_usd=None,
    )
    return made._replace(**more)
