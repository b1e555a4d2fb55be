"""The observer that counts; see `families` for what.

The values of every label are bounded: doors, outcomes and instances are ours, and a model is named
only where its instance is known to serve it. All else is `other`.
"""

from __future__ import annotations

from collections.abc import Iterable

from nexus_gateway.conventions import operation_of, provider_of
from nexus_gateway.instance import Instance
from nexus_gateway.metrics import families as f
from nexus_gateway.metrics.counts import Counts, observe
from nexus_gateway.metrics.state import models_of
from nexus_gateway.metrics.usual import Usual
from nexus_gateway.record import AttemptRecord, RequestRecord

OTHER = "other"
# How a request may end: as its stream did, or by an error's code or type.
OUTCOMES = frozenset(
    {
        "success",
        "failure",
        "cancelled",
        "bad_http",
        "deadline_exceeded",
        "endpoint_not_offered",
        "hook_failed",
        "internal_error",
        "invalid_explain",
        "invalid_api_key",
        "invalid_hedge",
        "invalid_request_error",
        "invalid_timeout",
        "model_not_found",
        "no_candidate",
        "no_capable_model",
        "no_providers",
        "overloaded",
        "queue_full",
        "rate_limit_exceeded",
        "request_timeout",
        "request_too_large",
        "server_error",
        "shutting_down",
        "unknown_routing_mode",
        "unsupported_media_type",
        "unsupported_parameter",
        "upstream_refused",
    }
)
# Why a request may be refused that no door took in: an error's code or type.
REASONS = frozenset(
    {
        "admin_closed",
        "bad_http",
        "instance_not_found",
        "internal_error",
        "invalid_api_key",
        "invalid_explain",
        "invalid_request_error",
        "ledger_off",
        "ledger_unreadable",
        "method_not_allowed",
        "metrics_off",
        "model_not_found",
        "not_installed",
        "request_timeout",
        "request_too_large",
        "shutting_down",
        "unknown_path",
        "unsupported_media_type",
    }
)


class Counting:
    """Counts each request that has ended.

    Args:
        instances: all there are.
    """

    def __init__(self, instances: Iterable[Instance]) -> None:
        self._counts = Counts()
        self._models = {instance.name: models_of(instance) for instance in instances}
        self._usual: dict[tuple[str, bool, str, str, str], Usual] = {}

    @property
    def counts(self) -> Counts:
        """All that was counted so far."""
        for usual in self._usual.values():
            usual.fold()
        return self._counts

    def __call__(self, record: RequestRecord) -> None:
        """Count a request (a `record.Observer`)."""
        model = self._model(record)
        if not is_usual(record):
            self.count(record, self._served(record, model))
            return
        shape = (record.endpoint, record.stream, record.caller, record.instance, model)
        usual = self._usual.get(shape)
        if usual is None:
            served = self._served(record, model)
            usual = self._usual[shape] = Usual(self._counts, record, served)
        usual.count(record)

    def refuse(self, status: int, reason: str) -> None:
        """Count a request that no door took in, and of which there is no record.

        Args:
            status: the HTTP status that its caller got.
            reason: the error's code, or its type where it has none.
        """
        self._counts.add((f.REFUSED.name, str(status), reason if reason in REASONS else OTHER))

    def count(self, record: RequestRecord, served: tuple[str, str, str]) -> None:
        """Count a request of whatever sort.

        Args:
            record: it.
            served: the labels of whom it was served by, see `families.SERVED`.
        """
        counts = self._counts
        outcome = record.outcome if record.outcome in OUTCOMES else OTHER
        status = f"{record.status // 100}xx"
        counts.add((f.REQUESTS.name, record.endpoint, status, outcome))
        if record.caller:
            counts.add((f.CALLER_REQUESTS.name, record.caller, status))
        if record.hedged:
            counts.add((f.HEDGED.name,))
        if record.resumed:
            counts.add((f.RESUMPTIONS.name,), record.resumed)
        error = "" if outcome == "success" else outcome
        self._time(f.REQUEST_DURATION, (*served, error), record.total_ms)
        if record.attempts:
            self._count_attempts(record, served[0])
            if record.answered:
                self._time_first_content(record, served)
        self._count_tokens(record, served)

    def _served(self, record: RequestRecord, model: str) -> tuple[str, str, str]:
        operation = operation_of(record.endpoint)
        return (operation, provider_of(record.provider), model)

    def _time(self, family: f.Family, labels: tuple[str, ...], took_ms: float) -> None:
        numbers = self._counts.of((family.name, *labels))
        observe(numbers, family.buckets, took_ms / 1000)

    def _model(self, record: RequestRecord) -> str:
        if record.model in self._models.get(record.instance, ()):
            return record.model
        return OTHER if record.instance else ""

    def _count_attempts(self, record: RequestRecord, operation: str) -> None:
        for attempt in record.attempts:
            labels = (attempt.provider, attempt.instance, attempt.outcome)
            self._counts.add((f.ATTEMPTS.name, *labels))
            took_ms = attempt.duration_ms
            if attempt is record.attempts[-1] and record.answered and not attempt.reason:
                took_ms += record.total_ms - record.first_ms
            if took_ms:  # else the caller left before anybody could tell
                asked = (*_asked(attempt, operation), _error_of(attempt))
                self._time(f.ATTEMPT_DURATION, asked, took_ms)
        for attempt in record.moves:
            labels = (attempt.provider, attempt.instance, attempt.outcome)
            self._counts.add((f.FAILOVERS.name, *labels))

    def _time_first_content(self, record: RequestRecord, served: tuple[str, ...]) -> None:
        """Time the way to the first content.

        What of it the answering attempt did not take is told in two figures. Where the first
        attempt answered, it is the gateway's own: reading the request, choosing, hooks, waiting
        in the queue. Where several were made, it is what those that failed took, and the pauses
        between them: that is no overhead of the gateway, but what fail-over costs a caller. A
        stream that was resumed had its first content from somebody else and is left out, as is a
        hedged one, whose two attempts overlap.
        """
        if record.resumed:
            return
        if record.stream:
            self._time(f.FIRST_TOKEN, served, record.first_ms)
            asked = _asked(record.attempts[-1], served[0])
            self._time(f.FIRST_CHUNK, asked, record.upstream_ms)
        if not record.hedged:
            family = f.OVERHEAD if len(record.attempts) == 1 else f.FAILOVER_DELAY
            lost_ms = max(0.0, record.first_ms - record.upstream_ms)
            self._time(family, (record.endpoint,), lost_ms)

        whole = record.stream and record.outcome == "success"
        if whole and (tokens := record.tokens.spoken or 0) > 1:
            spent_ms = max(0.0, record.total_ms - record.first_ms)
            self._time(f.OUTPUT_TOKEN, served, spent_ms / (tokens - 1))

    def _count_tokens(self, record: RequestRecord, served: tuple[str, ...]) -> None:
        used = record.tokens
        for kind, tokens in ((f.INPUT, used.prompt), (f.OUTPUT, used.completion)):
            if not tokens:
                continue
            numbers = self._counts.of((f.TOKEN_USAGE.name, *served, kind))
            observe(numbers, f.TOKENS, tokens)
            labels = (record.provider, record.instance, kind)
            self._counts.add((f.INSTANCE_TOKENS.name, *labels), tokens)
            if record.caller:
                self._counts.add((f.CALLER_TOKENS.name, record.caller, kind), tokens)


def is_usual(record: RequestRecord) -> bool:
    """Tell whether a request was served by the first attempt, and well: as most are."""
    return (
        record.outcome == "success"
        and record.status == 200
        and len(record.attempts) == 1
        and not record.hedged
        and not record.resumed
        and record.answered
    )


def _asked(attempt: AttemptRecord, operation: str) -> tuple[str, str, str]:
    provider = provider_of(attempt.provider)
    return (operation, provider, attempt.instance)


def _error_of(attempt: AttemptRecord) -> str:
    return "" if attempt.outcome == "success" else attempt.outcome
