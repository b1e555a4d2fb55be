"""The observer that counts; see `families` for what.

The values of every label are bounded: doors, outcomes and instances are ours, and a model is named
only where its instance is known to serve it. All else is `other`.

What was counted, by family and labels: plain numbers, to be added up and sent about.

A key is the family's name and the values of its labels, in their order. Behind each stand one
number for a counter; for a histogram how many values fell into each bucket, the last of which has
no bound, and then the sum of the values.

The usual request, counted at a fraction of the price: one attempt, and it went well.

Its labels are the same each time, so the numbers behind them are looked up once; and such requests
are counted many at a time, figure by figure.
"""

from __future__ import annotations

import json
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence

from nexus_gateway.provider import Outcome
from nexus_gateway.proxy.record import RequestRecord
from nexus_gateway.routing.attempts import Attempt
from nexus_gateway.routing.instance import Instance
from nexus_gateway.telemetry.metrics import definitions
from nexus_gateway.telemetry.metrics.definitions import BY_NAME, HISTOGRAM
from nexus_gateway.telemetry.semconv import operation_of, provider_of

Key = tuple[str, ...]
_PREFIX = "metrics "
# Stands between key and place in a shared name; JSON never holds it.
_TAB = "\t"


class Counts:
    """Counters and histograms.

    Attributes:
        numbers: what stands behind each key.
    """

    def __init__(self) -> None:
        self.numbers: dict[Key, list[float]] = {}
        self._names: dict[Key, str] = {}

    def of(self, key: Key) -> list[float]:
        """Return the numbers behind a key, to be added to by `observe` or by hand."""
        found = self.numbers.get(key)
        if found is None:
            family = BY_NAME[key[0]]
            size = len(family.buckets) + 2 if family.sort == HISTOGRAM else 1
            found = self.numbers[key] = [0] * size
        return found

    def add(self, key: Key, amount: float = 1) -> None:
        """Count."""
        self.of(key)[0] += amount

    def copy(self) -> Counts:
        """Return a copy that can be added to."""
        copied = Counts()
        copied.numbers = {key: list(numbers) for key, numbers in self.numbers.items()}
        copied._names = self._names
        return copied

    def shared(self) -> dict[str, float]:
        """Return all numbers that are not 0 under names that `add_shared` reads."""
        return {
            f"{name}{place}": number
            for key, numbers in self.numbers.items()
            for name in (self._name(key),)
            for place, number in enumerate(numbers)
            if number
        }

    def add_shared(self, said: Mapping[str, float]) -> None:
        """Add what others counted; what this version does not know is left out."""
        for name, number in said.items():
            if not name.startswith(_PREFIX):
                continue
            written, _, place = name.removeprefix(_PREFIX).partition(_TAB)
            key: Key = tuple(json.loads(written))
            family = BY_NAME.get(key[0])
            if family is not None and len(key) - 1 == len(family.labels):
                numbers = self.of(key)
                if int(place) < len(numbers):
                    numbers[int(place)] += number

    def _name(self, key: Key) -> str:
        name = self._names.get(key)
        if name is None:
            name = self._names[key] = f"{_PREFIX}{json.dumps(key)}{_TAB}"
        return name


def observe(numbers: list[float], buckets: tuple[float, ...], value: float) -> None:
    """Put a value into a histogram.

    Args:
        numbers: the histogram's.
        buckets: its family's; a bound belongs to the bucket below it.
        value: what was measured.
    """
    observe_all(numbers, buckets, (value,))


def observe_all(numbers: list[float], buckets: tuple[float, ...], values: Sequence[float]) -> None:
    """Put values into a histogram; see `observe`."""
    for value in values:
        numbers[bisect_left(buckets, value)] += 1
    numbers[-1] += sum(values)


def models_of(instance: Instance) -> frozenset[str]:
    """Return the models that an instance is known to serve."""
    return frozenset({instance.model, *(model.id for model in instance.provider.models)})


# The page remembers more of them anyway, so that none lives longer for this.
AT_ONCE = 128


class Usual:
    """Where requests count that differ in nothing but numbers.

    Args:
        counts: where everything is counted.
        record: one of them.
        served: the labels of whom it was served by, see `families.SERVED`.
    """

    def __init__(self, counts: Counts, record: RequestRecord, served: tuple[str, ...]) -> None:
        of, who = counts.of, (record.provider, record.instance)
        self._of, self._served, self._who = of, served, who
        asked = (*served[:2], record.instance)
        self._waiting: list[RequestRecord] = []
        self._counters = [
            of((definitions.REQUESTS.name, record.endpoint, "2xx", "success")),
            of((definitions.ATTEMPTS.name, *who, "success")),
        ]
        if record.caller:
            self._counters.append(of((definitions.CALLER_REQUESTS.name, record.caller, "2xx")))
        self._duration = of((definitions.REQUEST_DURATION.name, *served, ""))
        self._attempt_duration = of((definitions.ATTEMPT_DURATION.name, *asked, ""))
        self._overhead = of((definitions.OVERHEAD.name, record.endpoint))
        self._stream, self._caller = record.stream, record.caller
        if record.stream:
            self._first_token = of((definitions.FIRST_TOKEN.name, *served))
            self._first_chunk = of((definitions.FIRST_CHUNK.name, *asked))

    def count(self, record: RequestRecord) -> None:
        """Count one of them, now or with the next `fold`."""
        self._waiting.append(record)
        if len(self._waiting) >= AT_ONCE:
            self.fold()

    def fold(self) -> None:
        """Count what waits."""
        records, self._waiting = self._waiting, []
        if not records:
            return
        for counter in self._counters:
            counter[0] += len(records)
        observe_all(self._duration, definitions.DURATION_S, [r.total_ms / 1000 for r in records])
        attempts_ms = [r.attempts[0].duration_ms + r.total_ms - r.first_ms for r in records]
        observe_all(
            self._attempt_duration, definitions.DURATION_S, [ms / 1000 for ms in attempts_ms]
        )
        own_ms = [max(0.0, r.first_ms - r.upstream_ms) for r in records]
        observe_all(self._overhead, definitions.OVERHEAD_S, [ms / 1000 for ms in own_ms])
        self._count_tokens(definitions.INPUT, [r.tokens.prompt for r in records])
        self._count_tokens(definitions.OUTPUT, [r.tokens.completion for r in records])
        if self._stream:
            self._time_streams(records)

    def _count_tokens(self, kind: str, told: list[int | None]) -> None:
        tokens = [count for count in told if count]
        if not tokens:  # where nobody tells them, there are no series of 0 either
            return
        observe_all(
            self._of((definitions.TOKEN_USAGE.name, *self._served, kind)),
            definitions.TOKENS,
            tokens,
        )
        self._of((definitions.INSTANCE_TOKENS.name, *self._who, kind))[0] += sum(tokens)
        if self._caller:
            self._of((definitions.CALLER_TOKENS.name, self._caller, kind))[0] += sum(tokens)

    def _time_streams(self, records: list[RequestRecord]) -> None:
        observe_all(
            self._first_token, definitions.FIRST_TOKEN_S, [r.first_ms / 1000 for r in records]
        )
        observe_all(
            self._first_chunk, definitions.FIRST_TOKEN_S, [r.upstream_ms / 1000 for r in records]
        )
        each_s = [
            max(0.0, r.total_ms - r.first_ms) / 1000 / (tokens - 1)
            for r in records
            if (tokens := r.tokens.output_without_reasoning or 0) > 1
        ]
        if each_s:
            observe_all(
                self._of((definitions.OUTPUT_TOKEN.name, *self._served)),
                definitions.OUTPUT_TOKEN_S,
                each_s,
            )


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
        self._counts.add(
            (definitions.REFUSED.name, str(status), reason if reason in REASONS else OTHER)
        )

    def count(self, record: RequestRecord, served: tuple[str, str, str]) -> None:
        """Count a request of whatever sort.

        Args:
            record: it.
            served: the labels of whom it was served by, see `families.SERVED`.
        """
        counts = self._counts
        outcome = record.outcome if record.outcome in OUTCOMES else OTHER
        status = f"{record.status // 100}xx"
        counts.add((definitions.REQUESTS.name, record.endpoint, status, outcome))
        if record.caller:
            counts.add((definitions.CALLER_REQUESTS.name, record.caller, status))
        if record.hedged:
            counts.add((definitions.HEDGED.name,))
        if record.resumed:
            counts.add((definitions.RESUMPTIONS.name,), record.resumed)
        error = "" if outcome == "success" else outcome
        self._time(definitions.REQUEST_DURATION, (*served, error), record.total_ms)
        if record.attempts:
            self._count_attempts(record, served[0])
            if record.answered:
                self._time_first_content(record, served)
        self._count_tokens(record, served)

    def _served(self, record: RequestRecord, model: str) -> tuple[str, str, str]:
        operation = operation_of(record.endpoint)
        return (operation, provider_of(record.provider), model)

    def _time(self, family: definitions.Family, labels: tuple[str, ...], took_ms: float) -> None:
        numbers = self._counts.of((family.name, *labels))
        observe(numbers, family.buckets, took_ms / 1000)

    def _model(self, record: RequestRecord) -> str:
        if record.model in self._models.get(record.instance, ()):
            return record.model
        return OTHER if record.instance else ""

    def _count_attempts(self, record: RequestRecord, operation: str) -> None:
        for attempt in record.attempts:
            labels = (attempt.instance.provider_name, attempt.instance.name, attempt.outcome.value)
            self._counts.add((definitions.ATTEMPTS.name, *labels))
            took_ms = attempt.duration_ms
            if attempt is record.attempts[-1] and record.answered and not attempt.reason:
                took_ms += record.total_ms - record.first_ms
            if took_ms:  # else the caller left before anybody could tell
                asked = (*_asked(attempt, operation), _error_of(attempt))
                self._time(definitions.ATTEMPT_DURATION, asked, took_ms)
        for attempt in record.failovers:
            labels = (attempt.instance.provider_name, attempt.instance.name, attempt.outcome.value)
            self._counts.add((definitions.FAILOVERS.name, *labels))

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
            self._time(definitions.FIRST_TOKEN, served, record.first_ms)
            asked = _asked(record.attempts[-1], served[0])
            self._time(definitions.FIRST_CHUNK, asked, record.upstream_ms)
        if not record.hedged:
            family = (
                definitions.OVERHEAD if len(record.attempts) == 1 else definitions.FAILOVER_DELAY
            )
            lost_ms = max(0.0, record.first_ms - record.upstream_ms)
            self._time(family, (record.endpoint,), lost_ms)

        whole = record.stream and record.outcome == "success"
        if whole and (tokens := record.tokens.output_without_reasoning or 0) > 1:
            spent_ms = max(0.0, record.total_ms - record.first_ms)
            self._time(definitions.OUTPUT_TOKEN, served, spent_ms / (tokens - 1))

    def _count_tokens(self, record: RequestRecord, served: tuple[str, ...]) -> None:
        used = record.tokens
        for kind, tokens in (
            (definitions.INPUT, used.prompt),
            (definitions.OUTPUT, used.completion),
        ):
            if not tokens:
                continue
            numbers = self._counts.of((definitions.TOKEN_USAGE.name, *served, kind))
            observe(numbers, definitions.TOKENS, tokens)
            labels = (record.provider, record.instance, kind)
            self._counts.add((definitions.INSTANCE_TOKENS.name, *labels), tokens)
            if record.caller:
                self._counts.add((definitions.CALLER_TOKENS.name, record.caller, kind), tokens)


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


def _asked(attempt: Attempt, operation: str) -> tuple[str, str, str]:
    instance = attempt.instance
    return (operation, provider_of(instance.provider_name), instance.name)


def _error_of(attempt: Attempt) -> str:
    return "" if attempt.outcome is Outcome.SUCCESS else attempt.outcome.value
