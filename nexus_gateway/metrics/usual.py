"""The usual request, counted at half the price: one attempt, and it went well.

Its labels are the same each time, so the numbers behind them are looked up once.
"""

from __future__ import annotations

from nexus_gateway.metrics import families as f
from nexus_gateway.metrics.counts import Counts, observe
from nexus_gateway.record import RequestRecord


class Usual:
    """Where requests count that differ in nothing but numbers.

    Args:
        counts: where everything is counted.
        record: one of them.
        served: the labels of whom it was served by, see `families.SERVED`.
    """

    def __init__(self, counts: Counts, record: RequestRecord, served: tuple[str, ...]) -> None:
        of, who = counts.of, (record.provider, record.instance)
        asked = (*served[:2], record.instance)
        self._counters = [
            of((f.REQUESTS.name, record.endpoint, "2xx", "success")),
            of((f.ATTEMPTS.name, *who, "success")),
        ]
        if record.caller:
            self._counters.append(of((f.CALLER_REQUESTS.name, record.caller, "2xx")))
        self._duration = of((f.REQUEST_DURATION.name, *served, ""))
        self._attempt_duration = of((f.ATTEMPT_DURATION.name, *asked, ""))
        self._overhead = of((f.OVERHEAD.name, record.endpoint))
        self._stream = record.stream
        if record.stream:
            self._first_token = of((f.FIRST_TOKEN.name, *served))
            self._first_chunk = of((f.FIRST_CHUNK.name, *asked))
            self._output_token = of((f.OUTPUT_TOKEN.name, *served))
        self._tokens = [
            (
                of((f.TOKEN_USAGE.name, *served, kind)),
                of((f.INSTANCE_TOKENS.name, *who, kind)),
                of((f.CALLER_TOKENS.name, record.caller, kind)) if record.caller else None,
            )
            for kind in (f.INPUT, f.OUTPUT)
        ]

    def count(self, record: RequestRecord) -> None:
        """Count one of them."""
        for counter in self._counters:
            counter[0] += 1
        first_ms, upstream_ms, total_ms = record.first_ms, record.upstream_ms, record.total_ms
        attempt_ms = record.attempts[0].duration_ms + total_ms - first_ms
        observe(self._duration, f.DURATION_S, total_ms / 1000)
        observe(self._attempt_duration, f.DURATION_S, attempt_ms / 1000)
        observe(self._overhead, f.OVERHEAD_S, max(0.0, first_ms - upstream_ms) / 1000)
        used = record.tokens
        for tokens, (usage, of_instance, of_caller) in zip(
            (used.prompt, used.completion), self._tokens, strict=True
        ):
            if tokens:
                observe(usage, f.TOKENS, tokens)
                of_instance[0] += tokens
                if of_caller is not None:
                    of_caller[0] += tokens
        if self._stream:
            observe(self._first_token, f.FIRST_TOKEN_S, first_ms / 1000)
            observe(self._first_chunk, f.FIRST_TOKEN_S, upstream_ms / 1000)
            answered = used.completion or 0
            if answered > 1:
                spent_s = max(0.0, total_ms - first_ms) / 1000
                observe(self._output_token, f.OUTPUT_TOKEN_S, spent_s / (answered - 1))
