"""Records of requests that have ended, and attempts in them, without a gateway."""

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
    """Return an attempt that has ended; with the status 200 it had its first content."""
    made = object.__new__(Attempt)
    made.instance, made.model = _instance(instance, provider), "fake-large"
    made.verdict = Verdict(Outcome(outcome), reason or outcome, status)
    made.started_s, made.ended_s = 0.0, duration_ms / 1000
    made.first_content_s = made.ended_s if status == 200 else None
    made.usage = {}
    return made


def resumed() -> tuple[Attempt, ...]:
    """Return the attempts of an answer that broke and was continued by another instance."""
    return attempt(outcome="failure", reason="broke"), attempt("Fake (Key #2)")


def add_ended(history: AttemptHistory, instance: Instance, verdict: Verdict) -> None:
    """Add an attempt that has ended to a history, without a trace in its instance."""
    made = object.__new__(Attempt)
    made.instance, made.model, made.verdict = instance, instance.model, verdict
    made.started_s, made.ended_s, made.first_content_s = 0.0, 0.001, None
    made.usage = {}
    history.attempts.append(made)
    history.begun += 1


def ended(usage: Mapping[str, Any] | None = None, **more: object) -> RequestRecord:
    """Return the record of a stream that the first instance answered at once.

    Args:
        usage: of the answer, in OpenAI's shape.
        more: fields that differ.
    """
    made = RequestRecord(
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
    return made._replace(**more)


def record(**more: object) -> RequestRecord:
    """Return the record of such a stream that used some tokens."""
    return ended(**{"usage": USED, **more})
