"""The health score of one model of one instance.

    score = success_rate × (1 − latency share),   latency share = min(latency, limit) / limit

For a stream the latency is its time to the first token and the limit FIRST_TOKEN_TIMEOUT_MS:
98.0 % and 450 ms of 8000 make 92.5 %. A complete response is measured against its own, longer
limit, so that both kinds compare. Everything decays exponentially with time; an instance without
samples scores 100 %.

The samples of other processes weigh the same as local ones. Only local ones are published, so that
no sample is counted twice.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from math import ceil

HALF_LIFE_S = 120.0
FLOOR = 0.05  # at a score of 0 an instance would get no request that shows its recovery
WINDOW = 64  # first tokens from which percentiles are computed
MIN_SAMPLES = 20
MIN_WEIGHT = 0.01  # of one request, or one second: with less evidence the mean is unknown
MIN_DURATION_S = 0.05  # shorter streams give no meaningful speed
MEANS = ("successes", "shares", "latencies", "tokens")


@dataclass(frozen=True, slots=True)
class Sample:
    """A decaying weight and sum as of a time, in seconds of the clock."""

    at_s: float = 0.0
    weight: float = 0.0
    sum: float = 0.0

    def at(self, now_s: float, half_life_s: float) -> Sample:
        factor = 0.5 ** ((now_s - self.at_s) / half_life_s)
        return Sample(now_s, self.weight * factor, self.sum * factor)

    def plus(self, other: Sample, half_life_s: float = HALF_LIFE_S) -> Sample:
        """Return both together, as of the later of the two."""
        now_s = max(self.at_s, other.at_s)
        mine, its = self.at(now_s, half_life_s), other.at(now_s, half_life_s)
        return Sample(now_s, mine.weight + its.weight, mine.sum + its.sum)


EMPTY = Sample()


class DecayingMean:
    """A weighted mean whose samples lose half of their weight in each half-life."""

    def __init__(self, clock: Callable[[], float], half_life_s: float) -> None:
        self._clock = clock
        self._half_life_s = half_life_s
        self._at_s = clock()
        self._weight = 0.0
        self._sum = 0.0
        self.remote = EMPTY  # the samples of all other processes

    def add(self, value: float, weight: float = 1.0) -> None:
        """Add a sample: the sum of `weight` units."""
        now = self._clock()
        factor = 0.5 ** ((now - self._at_s) / self._half_life_s)
        self._at_s = now
        self._weight = self._weight * factor + weight
        self._sum = self._sum * factor + value

    def local(self) -> Sample:
        return Sample(self._at_s, self._weight, self._sum)

    def known(self) -> Sample:
        """Return the samples of all processes."""
        return self.local().plus(self.remote, self._half_life_s)

    def mean(self) -> float | None:
        """Return the mean of local and remote samples, None if (almost) all have decayed.

        It changes nothing, so that `local` differs only after an addition.
        """
        now = self._clock()
        factor = 0.5 ** ((now - self._at_s) / self._half_life_s)
        weight, total = self._weight * factor, self._sum * factor
        if self.remote is not EMPTY:
            remote = self.remote.at(now, self._half_life_s)
            weight, total = weight + remote.weight, total + remote.sum
        return total / weight if weight >= MIN_WEIGHT else None


class Health:
    """Success rate, latency and speed of a deployment; `clock` is in monotonic seconds."""

    def __init__(self, clock: Callable[[], float], *, half_life_s: float = HALF_LIFE_S) -> None:
        means = [DecayingMean(clock, half_life_s) for _ in MEANS]
        self._means = dict(zip(MEANS, means, strict=True))
        self._successes, self._shares, self._latencies, self._tokens = means
        self._first_tokens_ms: deque[float] = deque(maxlen=WINDOW)
        self._unpublished_ms: deque[float] = deque(maxlen=WINDOW)

    @classmethod
    def merged(cls, clock: Callable[[], float], healths: Iterable[Health]) -> Health:
        """Return what several have measured together, as of now."""
        merged = cls(clock)
        for health in healths:
            for name, mean in merged._means.items():
                mean.remote = mean.remote.plus(health._means[name].known())
            merged._first_tokens_ms.extend(health._first_tokens_ms)
        return merged

    def local(self) -> dict[str, Sample]:
        samples = {name: mean.local() for name, mean in self._means.items()}
        return {name: sample for name, sample in samples.items() if sample.weight}

    def merge_remote(self, samples: Mapping[str, Sample]) -> None:
        """Replace what all other processes have measured."""
        for name, mean in self._means.items():
            mean.remote = samples.get(name, EMPTY)

    def success(self) -> None:
        self._successes.add(1.0)

    def failure(self) -> None:
        self._successes.add(0.0)

    def observe_latency(self, latency_ms: float, limit_ms: float) -> None:
        """Record the time to the first token, or to a complete response, and its limit."""
        self._latencies.add(latency_ms)
        self._shares.add(min(latency_ms, limit_ms) / limit_ms)

    def observe_first_token(self, ttft_ms: float) -> None:
        self._first_tokens_ms.append(ttft_ms)
        self._unpublished_ms.append(ttft_ms)

    def new_first_tokens_ms(self) -> list[float]:
        """Return the local times to the first token since the last call, at most WINDOW."""
        times_ms = [round(ttft_ms, 2) for ttft_ms in self._unpublished_ms]
        self._unpublished_ms.clear()
        return times_ms

    def merge_first_tokens(self, ttfts_ms: Iterable[float]) -> None:
        self._first_tokens_ms.extend(ttfts_ms)

    def first_token_ms(self, share: float, *, of_at_least: int = MIN_SAMPLES) -> float | None:
        """Return a percentile (nearest rank; 0.95 for p95) of the recent times, in ms.

        None with fewer samples than `of_at_least`: a display needs fewer than a decision.
        """
        times_ms = sorted(self._first_tokens_ms)
        return times_ms[ceil(len(times_ms) * share) - 1] if len(times_ms) >= of_at_least else None

    def observe_speed(self, tokens: int, spent_s: float) -> None:
        """Record how fast an answer was streamed after its first token.

        `tokens` are those after the first, without known reasoning tokens. Weighted by duration, so
        that the mean is tokens a second. A very short stream is left out: its tokens had piled up
        on the way, or were cached. It is the pace of the whole way: a slow caller makes it slower.
        """
        if spent_s >= MIN_DURATION_S:
            self._tokens.add(tokens, spent_s)

    def success_rate(self) -> float:
        """Return the share of successes, 1.0 if none is known."""
        rate = self._successes.mean()
        return 1.0 if rate is None else rate

    @property
    def is_judged(self) -> bool:
        """Whether a success or a failure is known that has not decayed, in any process."""
        return self._successes.mean() is not None

    def latency_ms(self) -> float | None:
        return self._latencies.mean()

    def latency_share(self) -> float:
        """Return the mean latency as a share of its limit, 0 to 1; 0 if none is known."""
        return self._shares.mean() or 0.0

    def tokens_per_s(self) -> float | None:
        """Return the mean speed of streams after their first token, None if none is known."""
        return self._tokens.mean()

    def score(self) -> float:
        """Return the health score, from FLOOR to 1."""
        return max(FLOOR, self.success_rate() * (1.0 - self.latency_share()))
