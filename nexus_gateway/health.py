"""The health score of one instance.

    score = success_rate × (1 − latency share),   latency share = min(latency, limit) / limit

For a stream the latency is its time to the first token and the limit FIRST_TOKEN_TIMEOUT_MS:
98.0 % and 450 ms of 8000 make 92.5 %. A whole answer is measured against its own, longer limit,
so that both kinds compare. Everything decays exponentially in time, so the past fades; an
instance without a past is an optimist's: 100 %.
"""

from __future__ import annotations

from collections.abc import Callable

HALF_LIFE_S = 120.0
FLOOR = 0.05  # an instance with no chance at all could never show that it is back
FORGOTTEN = 0.01  # of one request: less evidence than this is none


class Decayed:
    """A weighted mean whose samples lose half of their weight in each half-life."""

    def __init__(self, clock: Callable[[], float], half_life_s: float) -> None:
        self._clock = clock
        self._half_life_s = half_life_s
        self._at_s = clock()
        self._weight = 0.0
        self._sum = 0.0

    def add(self, value: float) -> None:
        """Add a sample of weight 1."""
        self._fade()
        self._weight += 1.0
        self._sum += value

    def mean(self) -> float | None:
        """Return the mean, or None when nothing is known, or no more."""
        self._fade()
        return self._sum / self._weight if self._weight >= FORGOTTEN else None

    def _fade(self) -> None:
        now = self._clock()
        factor = 0.5 ** ((now - self._at_s) / self._half_life_s)
        self._at_s = now
        self._weight *= factor
        self._sum *= factor


class Health:
    """What is known of an instance.

    Args:
        clock: monotonic seconds.
        half_life_s: how fast the past fades.
    """

    def __init__(self, clock: Callable[[], float], *, half_life_s: float = HALF_LIFE_S) -> None:
        self._successes = Decayed(clock, half_life_s)
        self._shares = Decayed(clock, half_life_s)
        self._latencies = Decayed(clock, half_life_s)
        self._speeds = Decayed(clock, half_life_s)

    def success(self) -> None:
        """Count an answer that ended well."""
        self._successes.add(1.0)

    def failure(self) -> None:
        """Count a failure."""
        self._successes.add(0.0)

    def observe_latency(self, latency_ms: float, limit_ms: float) -> None:
        """Note how long an answer let itself be waited for, and its limit."""
        self._latencies.add(latency_ms)
        self._shares.add(min(latency_ms, limit_ms) / limit_ms)

    def observe_speed(self, tokens_per_s: float) -> None:
        """Note how fast an answer came once it had begun."""
        self._speeds.add(tokens_per_s)

    def success_rate(self) -> float:
        """Return the share of successes, 1.0 when nothing is known."""
        rate = self._successes.mean()
        return 1.0 if rate is None else rate

    def latency_ms(self) -> float | None:
        """Return the mean latency in ms."""
        return self._latencies.mean()

    def tokens_per_s(self) -> float | None:
        """Return the mean speed in tokens a second."""
        return self._speeds.mean()

    def score(self) -> float:
        """Return the health score, from FLOOR to 1."""
        return max(FLOOR, self.success_rate() * (1.0 - (self._shares.mean() or 0.0)))
