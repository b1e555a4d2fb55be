"""Counts the requests that have ended.

The values of every label are bounded: endpoints, outcomes and instances are the gateway's own, and
a model is named only if the instance is known to serve it. Anything else is `other`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from nexus_gateway.provider import Outcome
from nexus_gateway.proxy.record import RequestRecord
from nexus_gateway.routing.affinity import NONE
from nexus_gateway.routing.attempts import Attempt
from nexus_gateway.routing.instance import Instance
from nexus_gateway.telemetry.metrics import definitions
from nexus_gateway.telemetry.metrics.counts import Counts
from nexus_gateway.telemetry.semconv import operation_of, provider_of

# Long enough for many requests with the same labels, short enough not to stall the event loop.
BATCH = 256
OTHER = "other"


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_ERRORS = _words("""
    bad_http bodies_overloaded endpoint_not_offered internal_error invalid_api_key invalid_explain
    invalid_request_error model_not_found previous_response_not_found request_timeout
    request_too_large shutting_down store_unavailable unknown_expectation
    unsupported_http_version unsupported_media_type
""")
# How a request may end: as its stream did, or with an error's code or type.
OUTCOMES = _ERRORS | _words("""
    success failure cancelled deadline_exceeded hook_failed invalid_hedge
    invalid_timeout loop_detected no_candidate no_capable_model no_providers overloaded queue_full
    rate_limit_exceeded server_error unknown_routing_mode unsupported_parameter upstream_refused
""")
# Why a request may be rejected before it reaches an endpoint: an error's code or type.
REASONS = _ERRORS | _words("""
    admin_closed foreign_page instance_not_found ledger_off ledger_unreadable method_not_allowed
    metrics_off not_installed unknown_path
""")


def models_of(instance: Instance) -> frozenset[str]:
    return frozenset({*instance.models, *(model.id for model in instance.provider.models)})


class Counting:
    """The observer that counts, a batch at a time."""

    def __init__(self, instances: Iterable[Instance]) -> None:
        self._counts = Counts()
        self._models = {instance.name: models_of(instance) for instance in instances}
        self._waiting: list[RequestRecord] = []

    def observe(self, record: RequestRecord) -> None:
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
        """Count the requests that wait, together if they differ only in times and tokens."""
        groups: defaultdict[tuple[object, ...], list[RequestRecord]] = defaultdict(list)
        for r in self._waiting:
            # All that decides where a request counts.
            labels = (r.endpoint, r.stream, r.caller, r.provider, r.instance, r.model, r.status)
            attempts = [(*_labels(a), a.first_content_s is None, not a.reason) for a in r.attempts]
            groups[(*labels, r.outcome, r.hedged, r.resumed, r.affinity, *attempts)].append(r)
        self._waiting.clear()
        for records in groups.values():
            self._count(records)

    def _count(self, records: list[RequestRecord]) -> None:
        add, record, number = self._counts.add, records[0], len(records)
        outcome = record.outcome if record.outcome in OUTCOMES else OTHER
        status = f"{record.status // 100}xx"
        add(definitions.REQUESTS, (record.endpoint, status, outcome), number)
        if record.caller:
            add(definitions.CALLER_REQUESTS, (record.caller, status), number)
        if record.affinity != NONE:
            add(definitions.AFFINITY, (record.affinity,), number)
        if record.hedged:
            add(definitions.HEDGED, amount=number)
        if record.resumed:
            add(definitions.RESUMPTIONS, amount=number * record.resumed)
        operation = operation_of(record.endpoint)
        served = (operation, provider_of(record.provider), self._model(record))
        labels = (*served, "" if outcome == "success" else outcome)
        totals_s = [r.total_ms / 1000 for r in records]
        self._counts.observe(definitions.REQUEST_DURATION, labels, totals_s)
        self._count_attempts(records, operation)
        # A resumed stream had its first content from another instance.
        if record.answered and not record.resumed:
            self._time_first_content(records, served)
        self._count_tokens(records, served)

    def _model(self, record: RequestRecord) -> str:
        if record.model in self._models.get(record.instance, ()):
            return record.model
        return OTHER if record.instance else ""

    def _count_attempts(self, records: list[RequestRecord], operation: str) -> None:
        add, observe, record = self._counts.add, self._counts.observe, records[0]
        for attempts in zip(*(r.attempts for r in records), strict=True):
            attempt = attempts[0]
            add(definitions.ATTEMPTS, _labels(attempt), len(records))
            error = "" if attempt.outcome is Outcome.SUCCESS else attempt.outcome.value
            times_ms = [a.duration_ms for a in attempts]
            if attempt is record.attempts[-1] and record.answered and not attempt.reason:
                # Its own time ends at the first content; it lasted to the request's end.
                rests_ms = [r.total_ms - r.first_ms for r in records]
                times_ms = [ms + rest for ms, rest in zip(times_ms, rests_ms, strict=True)]
            # 0 if the caller disconnected before there was any result.
            times_s = [ms / 1000 for ms in times_ms if ms]
            observe(definitions.ATTEMPT_DURATION, (*_asked(attempt, operation), error), times_s)
        for attempt in record.failovers:
            add(definitions.FAILOVERS, _labels(attempt), len(records))

    def _time_first_content(self, records: list[RequestRecord], served: tuple[str, ...]) -> None:
        """Record the time to the first content.

        With one attempt, what it did not take is the gateway's overhead: reading the request,
        routing, hooks, the queue. With several it is what the failed ones and the pauses took,
        which is the cost of fail-over. The two attempts of a hedged request overlap: neither.
        """
        observe, record = self._counts.observe, records[0]
        if not record.hedged:
            alone = len(record.attempts) == 1
            family = definitions.OVERHEAD if alone else definitions.FAILOVER_DELAY
            others_s = [max(0.0, r.first_ms - r.upstream_ms) / 1000 for r in records]
            observe(family, (record.endpoint,), others_s)
        if not record.stream:
            return
        observe(definitions.FIRST_TOKEN, served, [r.first_ms / 1000 for r in records])
        asked = _asked(record.attempts[-1], served[0])
        observe(definitions.FIRST_CHUNK, asked, [r.upstream_ms / 1000 for r in records])
        if record.outcome == "success":
            paces_s = [
                max(0.0, r.total_ms - r.first_ms) / 1000 / (tokens - 1)
                for r in records
                if (tokens := r.tokens.output_without_reasoning or 0) > 1
            ]
            observe(definitions.OUTPUT_TOKEN, served, paces_s)

    def _count_tokens(self, records: list[RequestRecord], served: tuple[str, ...]) -> None:
        record, add = records[0], self._counts.add
        inputs = [r.tokens.prompt for r in records if r.tokens.prompt]
        outputs = [r.tokens.completion for r in records if r.tokens.completion]
        if cached := sum(r.tokens.cached or 0 for r in records):
            add(definitions.CACHED_TOKENS, (record.provider, record.instance), cached)
        for kind, tokens in (("input", inputs), ("output", outputs)):
            if not tokens:  # unknown: no series of 0 either
                continue
            self._counts.observe(definitions.TOKEN_USAGE, (*served, kind), tokens)
            add(definitions.INSTANCE_TOKENS, (record.provider, record.instance, kind), sum(tokens))
            if record.caller:
                add(definitions.CALLER_TOKENS, (record.caller, kind), sum(tokens))


def _labels(attempt: Attempt) -> tuple[str, str, str]:
    return (attempt.instance.provider_name, attempt.instance.name, attempt.outcome.value)


def _asked(attempt: Attempt, operation: str) -> tuple[str, str, str]:
    return (operation, provider_of(attempt.instance.provider_name), attempt.instance.name)
