"""The usual request, counted at a fraction of the price: one attempt, and it went well.

Its labels are the same each time, so the numbers behind them are looked up once; and such requests
are counted many at a time, figure by figure.
"""

from __future__ import annotations

from nexus_gateway.metrics import families as f
from nexus_gateway.metrics.counts import Counts, observe_all
from nexus_gateway.record import RequestRecord

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
            of((f.REQUESTS.name, record.endpoint, "2xx", "success")),
            of((f.ATTEMPTS.name, *who, "success")),
        ]
        if record.caller:
            self._counters.append(of((f.CALLER_REQUESTS.name, record.caller, "2xx")))
        self._duration = of((f.REQUEST_DURATION.name, *served, ""))
        self._attempt_duration = of((f.ATTEMPT_DURATION.name, *asked, ""))
        self._overhead = of((f.OVERHEAD.name, record.endpoint))
        self._stream, self._caller = record.stream, record.caller
        if record.stream:
            self._first_token = of((f.FIRST_TOKEN.name, *served))
            self._first_chunk = of((f.FIRST_CHUNK.name, *asked))

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
        observe_all(self._duration, f.DURATION_S, [r.total_ms / 1000 for r in records])
        attempts_ms = [r.attempts[0].duration_ms + r.total_ms - r.first_ms for r in records]
        observe_all(self._attempt_duration, f.DURATION_S, [ms / 1000 for ms in attempts_ms])
        own_ms = [max(0.0, r.first_ms - r.upstream_ms) for r in records]
        observe_all(self._overhead, f.OVERHEAD_S, [ms / 1000 for ms in own_ms])
        self._count_tokens(f.INPUT, [r.tokens.prompt for r in records])
        self._count_tokens(f.OUTPUT, [r.tokens.completion for r in records])
        if self._stream:
            self._time_streams(records)

    def _count_tokens(self, kind: str, told: list[int | None]) -> None:
        tokens = [count for count in told if count]
        if not tokens:  # where nobody tells them, there are no series of 0 either
            return
        observe_all(self._of((f.TOKEN_USAGE.name, *self._served, kind)), f.TOKENS, tokens)
        self._of((f.INSTANCE_TOKENS.name, *self._who, kind))[0] += sum(tokens)
        if self._caller:
            self._of((f.CALLER_TOKENS.name, self._caller, kind))[0] += sum(tokens)

    def _time_streams(self, records: list[RequestRecord]) -> None:
        observe_all(self._first_token, f.FIRST_TOKEN_S, [r.first_ms / 1000 for r in records])
        observe_all(self._first_chunk, f.FIRST_TOKEN_S, [r.upstream_ms / 1000 for r in records])
        each_s = [
            max(0.0, r.total_ms - r.first_ms) / 1000 / (tokens - 1)
            for r in records
            if (tokens := r.tokens.spoken or 0) > 1
        ]
        if each_s:
            observe_all(self._of((f.OUTPUT_TOKEN.name, *self._served)), f.OUTPUT_TOKEN_S, each_s)
