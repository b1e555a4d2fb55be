"""Records of ended requests and their attempts, without a gateway."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from types import SimpleNamespace
from typing import Any

from nexus_gateway.provider import Outcome, Verdict
from nexus_gateway.proxy.record import RequestRecord
from nexus_gateway.routing.attempts import Attempt, AttemptHistory
from nexus_gateway.routing.instance import Instance
from nexus_gateway.wire.usage import parse_usage

ONE = "Fake (Key #1)"
USED = {"prompt_tokens": 12, "completion_tokens": 3, "total_tokens": 15}


@cache
def _instance(name: str, provider: str) -> Any:
    return SimpleNamespace(name=name, provider_name=provider)


def attempt(
    instance: str = ONE,
    outcome: str = "success",
    reason: str = "",
    status: int = 200,
    duration_ms: float = 5.0,
    provider: str = "fake",
) -> Attempt:
    """Return an ended attempt; with status 200 it received its first content."""
    result = object.__new__(Attempt)
    result.instance, result.model = _instance(instance, provider), "fake-large"
    result.verdict = Verdict(Outcome(outcome), reason or outcome, status)
    result.started_s, result.ended_s = 0.0, duration_ms / 1000
    result.first_content_s = result.ended_s if status == 200 else None
    result.usage = {}
    return result


def resumed() -> tuple[Attempt, ...]:
    """Return the attempts of a broken answer that another instance resumed."""
    return attempt(outcome="failure", reason="broke"), attempt("Fake (Key #2)")


def add_ended(history: AttemptHistory, instance: Instance, verdict: Verdict) -> None:
    """Add an ended attempt to a history, without changing its instance."""
    added = object.__new__(Attempt)
    added.deployment, added.verdict = instance.default, verdict
    added.instance, added.model = instance, instance.model
    added.started_s, added.ended_s, added.first_content_s = 0.0, 0.001, None
    added.usage = {}
    history.attempts.append(added)
    history.begun += 1


def ended(usage: Mapping[str, Any] | None = None, **more: object) -> RequestRecord:
    """Return the record of a successful stream; `usage` has OpenAI's shape."""
    base = RequestRecord(
        id="req-1",
        trace_id="",
        ended_s=1000.0,
        endpoint="chat",
        asked_model="fake",
        stream=True,
        policy="smart",
        caller="key-2",
        instance=ONE,
        provider="fake",
        model="fake-large",
        attempts=(attempt(),),
        begun=1,
        hedged=False,
        status=200,
        outcome="success",
        first_ms=5.0,
        upstream_ms=5.0,
        total_ms=9.0,
        tokens=parse_usage(usage or {}),
        billed_usd=None,
    )
    return base._replace(**more)


def record(**more: object) -> RequestRecord:
    """Return the record of such a stream that used some tokens."""
    return ended(**{"usage": USED, **more})
