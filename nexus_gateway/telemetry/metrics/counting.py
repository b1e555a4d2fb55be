"""Counts the requests that have ended.

The values of every label are bounded: endpoints, outcomes and instances are the gateway's own, and
a model is named only if the instance is known to serve it. Anything else is `other`.
"""

from __future__ import annotations

from collections.abc import Iterable

from nexus_gateway.proxy.record import AttemptRecord, RequestRecord
from nexus_gateway.routing.instance import Instance
from nexus_gateway.telemetry.metrics import definitions
from nexus_gateway.telemetry.metrics.counts import Counts
from nexus_gateway.telemetry.semconv import operation_of, provider_of

# Short enough not to stall the event loop; the live feed keeps more records anyway.
BATCH = 128
OTHER = "other"
_ERRORS = frozenset(
    {
        "bad_http",
        "internal_error",
        "invalid_api_key",
        "invalid_explain",
        "invalid_request_error",
        "model_not_found",
        "request_timeout",
        "request_too_large",
        "shutting_down",
        "unsupported_media_type",
    }
)
# How a request may end: as its stream did, or with an error's code or type.
OUTCOMES = _ERRORS | {
    "success",
    "failure",
    "cancelled",
    "deadline_exceeded",
    "endpoint_not_offered",
    "hook_failed",
    "invalid_hedge",
    "invalid_timeout",
    "no_candidate",
    "no_capable_model",
    "no_providers",
    "overloaded",
    "queue_full",
    "rate_limit_exceeded",
    "server_error",
    "unknown_routing_mode",
    "unsupported_parameter",
    "upstream_refused",
}
# Why a request may be rejected before it reaches an endpoint: an error's code or type.
REASONS = _ERRORS | {
    "admin_closed",
    "instance_not_found",
    "ledger_off",
    "ledger_unreadable",
    "method_not_allowed",
    "metrics_off",
    "not_installed",
    "unknown_path",
}


def models_of(instance: Instance) -> frozenset[str]:
    """Return the models that an instance is known to serve."""
    return frozenset({instance.model, *(model.id for model in instance.provider.models)})


class Counting:
    """The observer that counts, a batch at a time."""

    def __init__(self, instances: Iterable[Instance]) -> None:
        self._counts = Counts()
        self._models = {instance.name: models_of(instance) for instance in instances}
        self._waiting: list[RequestRecord] = []

    def __call__(self, record: RequestRecord) -> None:
        self._waiting.append(record)
        if len(self._waiting) >= BATCH:
            self.fold()

    def refuse(self, status: int, reason: str) -> None:
        """Count a request that was rejected before it reached an endpoint; it has no record."""
        labels = (str(status), reason if reason in REASONS else OTHER)
        self._counts.add(definitions.REFUSED, labels)

    @property
    def counts(self) -> Counts:
        """What was counted so far, waiting requests included."""
        self.fold()
        return self._counts

    def fold(self) -> None:
        """Count the requests that wait."""
        while self._waiting:
            self._count(self._waiting.pop())

    def _count(self, record: RequestRecord) -> None:
        add, observe = self._counts.add, self._counts.observe
        outcome = record.outcome if record.outcome in OUTCOMES else OTHER
        status = f"{record.status // 100}xx"
        add(definitions.REQUESTS, (record.endpoint, status, outcome))
        if record.caller:
            add(definitions.CALLER_REQUESTS, (record.caller, status))
        if record.hedged:
            add(definitions.HEDGED)
        if record.resumed:
            add(definitions.RESUMPTIONS, amount=record.resumed)
        operation = operation_of(record.endpoint)
        served = (operation, provider_of(record.provider), self._model(record))
        error = "" if outcome == "success" else outcome
        observe(definitions.REQUEST_DURATION, (*served, error), record.total_ms / 1000)
        self._count_attempts(record, operation)
        # Whose first content a resumed stream had is not recorded.
        if record.answered and not record.resumed:
            self._time_first_content(record, served)
        self._count_tokens(record, served)

    def _model(self, record: RequestRecord) -> str:
        if record.model in self._models.get(record.instance, ()):
            return record.model
        return OTHER if record.instance else ""

    def _count_attempts(self, record: RequestRecord, operation: str) -> None:
        answered = record.answered
        for attempt in record.attempts:
            labels = (attempt.provider, attempt.instance, attempt.outcome)
            self._counts.add(definitions.ATTEMPTS, labels)
            took_ms = attempt.duration_ms
            if answered and attempt is record.attempts[-1] and not attempt.reason:
                took_ms += record.total_ms - record.first_ms
            if took_ms:  # else the caller disconnected before there was any result
                error = "" if attempt.outcome == "success" else attempt.outcome
                asked = (*_asked(attempt, operation), error)
                self._counts.observe(definitions.ATTEMPT_DURATION, asked, took_ms / 1000)
        for attempt in record.moves:
            labels = (attempt.provider, attempt.instance, attempt.outcome)
            self._counts.add(definitions.FAILOVERS, labels)

    def _time_first_content(self, record: RequestRecord, served: tuple[str, ...]) -> None:
        """Record the time to the first content.

        With one attempt, what it did not take is the gateway's overhead: reading the request,
        routing, hooks, the queue. With several it is what the failed ones and the pauses took,
        which is the cost of fail-over. The two attempts of a hedged request overlap: neither.
        """
        observe = self._counts.observe
        if record.stream:
            observe(definitions.FIRST_TOKEN, served, record.first_ms / 1000)
            asked = _asked(record.attempts[-1], served[0])
            observe(definitions.FIRST_CHUNK, asked, record.upstream_ms / 1000)
        if not record.hedged:
            alone = len(record.attempts) == 1
            family = definitions.OVERHEAD if alone else definitions.FAILOVER_DELAY
            observe(
                family, (record.endpoint,), max(0.0, record.first_ms - record.upstream_ms) / 1000
            )
        tokens = record.tokens.output_without_reasoning or 0
        if record.stream and record.outcome == "success" and tokens > 1:
            spent_ms = max(0.0, record.total_ms - record.first_ms)
            observe(definitions.OUTPUT_TOKEN, served, spent_ms / (tokens - 1) / 1000)

    def _count_tokens(self, record: RequestRecord, served: tuple[str, ...]) -> None:
        used = record.tokens
        for kind, tokens in (("input", used.prompt), ("output", used.completion)):
            if not tokens:  # unknown: no series either
                continue
            self._counts.observe(definitions.TOKEN_USAGE, (*served, kind), tokens)
            labels = (record.provider, record.instance, kind)
            self._counts.add(definitions.INSTANCE_TOKENS, labels, tokens)
            if record.caller:
                self._counts.add(definitions.CALLER_TOKENS, (record.caller, kind), tokens)


def _asked(attempt: AttemptRecord, operation: str) -> tuple[str, str, str]:
    return (operation, provider_of(attempt.provider), attempt.instance)
