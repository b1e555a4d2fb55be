"""What a campaign has seen so far."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from nexus_gateway.testing.chaos.judge import Answered, Broken, Ending, Judgement
from nexus_gateway.testing.chaos.plan import Asked


@dataclass
class Tally:
    """Counts, latencies and examples.

    Attributes:
        requests: how many were sent.
        endings: how they ended.
        attempts: by how many attempts an answer took, as far as the gateway tells.
        at_once_s: the time to the first content, of those answered by the first attempt.
        later_s: the same, of those that failed over.
        examples: of each broken promise the first.
        hits: upstream requests, by instance.
        befallen: by fault, how many requests or connections.
        health: what the last gateway said at its end.
        took_s: the time of it all.
        late_s: how late the mock and the callers were at most, as the machine was busy.
    """

    requests: int = 0
    endings: Counter[Ending | Broken] = field(default_factory=Counter)
    attempts: Counter[int] = field(default_factory=Counter)
    at_once_s: list[float] = field(default_factory=list)
    later_s: list[float] = field(default_factory=list)
    examples: dict[Broken, str] = field(default_factory=dict)
    hits: Counter[int] = field(default_factory=Counter)
    befallen: Counter[str] = field(default_factory=Counter)
    health: Mapping[str, Any] = field(default_factory=dict)
    took_s: float = 0.0
    late_s: float = 0.0

    @property
    def failed_over(self) -> int:
        """How many requests took more than one attempt."""
        return sum(count for attempts, count in self.attempts.items() if attempts > 1)

    @property
    def kept(self) -> bool:
        """Whether every promise was kept."""
        return not self.broken()

    def broken(self) -> list[Broken]:
        """Return the promises that were not kept."""
        return [promise for promise in Broken if self.endings[promise]]

    def add(self, asked: Asked, answered: Answered, judgement: Judgement) -> None:
        """Count an answer."""
        self.attempts[answered.attempts] += 1
        if judgement.ending is Ending.WHOLE:
            (self.later_s if answered.attempts > 1 else self.at_once_s).append(answered.first_s)
        if isinstance(judgement.ending, Broken):
            self.blame(judgement.ending, f"request {asked.number}: {judgement.why}")
        else:
            self.endings[judgement.ending] += 1

    def blame(self, promise: Broken, example: str) -> None:
        """Note a broken promise."""
        self.endings[promise] += 1
        self.examples.setdefault(promise, example)


def percentile(values: Sequence[float], share: float) -> float | None:
    """Return the smallest value that so large a share does not exceed; None of nothing."""
    if not values:
        return None
    return sorted(values)[max(0, math.ceil(len(values) * share) - 1)]
