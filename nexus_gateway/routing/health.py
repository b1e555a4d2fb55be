"""The health score of one instance.

    score = success_rate × (1 − latency share),   latency share = min(latency, limit) / limit

For a stream the latency is its time to the first token and the limit FIRST_TOKEN_TIMEOUT_MS:
98.0 % and 450 ms of 8000 make 92.5 %. A whole answer is measured against its own, longer limit,
so that both kinds compare. Everything decays exponentially in time, so the past fades; an
instance without a past is an optimist's: 100 %.

What other processes have seen of the same instance is heard as well and weighs the same. Only what
was seen here is told, so that nothing is ever told back and counted twice.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from math import ceil

HALF_LIFE_S = 120.0
FLOOR = 0.05  # an instance with no chance at all could never show that it is back
WINDOW = 64  # of the first tokens, by which is told what is unusually slow
MIN_SAMPLES = 20
MIN_WEIGHT = 0.01  # of one request, or one second: less evidence than this is none
SHORTEST_S = 0.05  # of what is timed to tell a speed


@dataclass(frozen=True, slots=True)
class Sample:
    """A decayed weight and sum, and the time at which they were so.

    Args:
        at_s: in seconds of the clock.
        weight: how many samples that is.
        sum: of their values.
    """

    at_s: float = 0.0
    weight: float = 0.0
    sum: float = 0.0

    def at(self, now_s: float, half_life_s: float) -> Sample:
        """Return what is left of it later."""
        factor = 0.5 ** ((now_s - self.at_s) / half_life_s)
        return Sample(now_s, self.weight * factor, self.sum * factor)

    def plus(self, other: Sample, half_life_s: float = HALF_LIFE_S) -> Sample:
        """Return both together, as of the later of the two."""
        now_s = max(self.at_s, other.at_s)
        mine, its = self.at(now_s, half_life_s), other.at(now_s, half_life_s)
        return Sample(now_s, mine.weight + its.weight, mine.sum + its.sum)


NOTHING = Sample()


class DecayingMean:
    """A weighted mean whose samples lose half of their weight in each half-life.

    Args:
        clock: monotonic seconds.
        half_life_s: how fast the past fades.
    """

    def __init__(self, clock: Callable[[], float], half_life_s: float) -> None:
        self._clock = clock
        self._half_life_s = half_life_s
        self._at_s = clock()
        self._weight = 0.0
        self._sum = 0.0
        self.heard = NOTHING

    def add(self, value: float, weight: float = 1.0) -> None:
        """Add a sample.

        Args:
            value: what was measured; where that was in several units, of all of them.
            weight: how many units that is.
        """
        now = self._clock()
        factor = 0.5 ** ((now - self._at_s) / self._half_life_s)
        self._at_s = now
        self._weight = self._weight * factor + weight
        self._sum = self._sum * factor + value

    def local(self) -> Sample:
        """Return what was added here, as of the last time something was."""
        return Sample(self._at_s, self._weight, self._sum)

    def mean(self) -> float | None:
        """Return the mean of what was added and heard, or None when nothing is known, or no more.

        Asking changes nothing, so that what was seen is told again only when there is more of it.
        """
        now = self._clock()
        factor = 0.5 ** ((now - self._at_s) / self._half_life_s)
        weight, total = self._weight * factor, self._sum * factor
        if self.heard is not NOTHING:
            heard = self.heard.at(now, self._half_life_s)
            weight, total = weight + heard.weight, total + heard.sum
        return total / weight if weight >= MIN_WEIGHT else None


class Health:
    """What is known of an instance.

    Args:
        clock: monotonic seconds.
        half_life_s: how fast the past fades.
    """

    def __init__(self, clock: Callable[[], float], *, half_life_s: float = HALF_LIFE_S) -> None:
        self._successes = DecayingMean(clock, half_life_s)
        self._shares = DecayingMean(clock, half_life_s)
        self._latencies = DecayingMean(clock, half_life_s)
        self._tokens = DecayingMean(clock, half_life_s)  # in each second
        self._first_tokens_ms: deque[float] = deque(maxlen=WINDOW)
        self._untold_ms: deque[float] = deque(maxlen=WINDOW)

    @property
    def _means(self) -> dict[str, DecayingMean]:
        return {
            "successes": self._successes,
            "shares": self._shares,
            "latencies": self._latencies,
            "tokens": self._tokens,
        }

    def local(self) -> dict[str, Sample]:
        """Return what was seen here, by the name of what was measured."""
        return {name: mean.local() for name, mean in self._means.items()}

    def merge_remote(self, samples: Mapping[str, Sample]) -> None:
        """Take what all others have seen, in the place of what they had seen before."""
        for name, mean in self._means.items():
            mean.heard = samples.get(name, NOTHING)

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

    def observe_first_token(self, ttft_ms: float) -> None:
        """Note a stream's time to its first token, beside its latency."""
        self._first_tokens_ms.append(ttft_ms)
        self._untold_ms.append(ttft_ms)

    def new_first_tokens_ms(self) -> list[float]:
        """Return those that were seen here since this was last asked, the newest of them."""
        if not self._untold_ms:
            return []
        found = [round(ttft_ms, 2) for ttft_ms in self._untold_ms]
        self._untold_ms.clear()
        return found

    def merge_first_tokens(self, ttfts_ms: Iterable[float]) -> None:
        """Note those that others have seen, as if they had just been seen here."""
        self._first_tokens_ms.extend(ttfts_ms)

    def first_token_ms(self, share: float, *, of_at_least: int = MIN_SAMPLES) -> float | None:
        """Return the time in which a share of the recent streams, of all processes, had theirs.

        Args:
            share: of 1: 0.95 for the 95th percentile (by nearest rank).
            of_at_least: how many must be known; to look at, fewer do than to decide by.

        Returns:
            ms; None where too few are known.
        """
        known = sorted(self._first_tokens_ms)
        return known[ceil(len(known) * share) - 1] if len(known) >= of_at_least else None

    def observe_speed(self, tokens: int, spent_s: float) -> None:
        """Note how fast an answer came once it had begun.

        Long ones weigh more than short ones, so that the mean is what comes in a second. What came
        in a moment tells nothing: it had gathered on the way, or was cached. It is the pace at
        which the answer went through: a caller who takes it slowly makes it slower.

        Args:
            tokens: those after the first, without what is known to have been thought only.
            spent_s: from the first to the end, the caller's own pace included.
        """
        if spent_s >= SHORTEST_S:
            self._tokens.add(tokens, spent_s)

    def success_rate(self) -> float:
        """Return the share of successes, 1.0 when nothing is known."""
        rate = self._successes.mean()
        return 1.0 if rate is None else rate

    @property
    def is_judged(self) -> bool:
        """Whether a success or a failure is known, here or elsewhere, that is not forgotten."""
        return self._successes.mean() is not None

    def latency_ms(self) -> float | None:
        """Return the mean latency in ms."""
        return self._latencies.mean()

    def latency_share(self) -> float:
        """Return how much of its limit the latency takes, from 0 to 1; 0 when nothing is known."""
        return self._shares.mean() or 0.0

    def tokens_per_s(self) -> float | None:
        """Return the mean speed in tokens a second: of streams, once they have begun."""
        return self._tokens.mean()

    def score(self) -> float:
        """Return the health score, from FLOOR to 1."""
        return max(FLOOR, self.success_rate() * (1.0 - self.latency_share()))
