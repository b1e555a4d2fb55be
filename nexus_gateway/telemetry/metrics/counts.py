"""Counters and histograms as plain numbers, which the workers share and add up.

A key is a family's name and the values of its labels, in their order. A counter has one number; a
histogram has one for each bucket, not cumulative, one for what exceeds all bounds, and the sum.
"""

from __future__ import annotations

import json
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from functools import cache

from nexus_gateway.telemetry.metrics.definitions import BY_NAME, Family

Key = tuple[str, ...]
_PREFIX = "metrics "
# Between key and position in a shared name; JSON never contains it.
_TAB = "\t"


class Counts:
    def __init__(self) -> None:
        self.numbers: dict[Key, list[float]] = {}

    def of(self, family: Family, labels: tuple[str, ...] = ()) -> list[float]:
        """Return the numbers of a series; a new one is 0."""
        key = (family.name, *labels)
        if key not in self.numbers:
            self.numbers[key] = [0] * (len(family.buckets) + 2 if family.buckets else 1)
        return self.numbers[key]

    def add(self, family: Family, labels: tuple[str, ...] = (), amount: float = 1) -> None:
        self.of(family, labels)[0] += amount

    def observe(self, family: Family, labels: tuple[str, ...], values: Sequence[float]) -> None:
        """Add values to a histogram; a bound belongs to the bucket below it."""
        if values:
            numbers = self.of(family, labels)
            for value in values:
                numbers[bisect_left(family.buckets, value)] += 1
            numbers[-1] += sum(values)

    def copy(self) -> Counts:
        copied = Counts()
        copied.numbers = {key: list(numbers) for key, numbers in self.numbers.items()}
        return copied

    def shared(self) -> dict[str, float]:
        """Return all numbers that are not 0, by the names that `add_shared` reads."""
        return {
            f"{_shared_name(key)}{position}": number
            for key, numbers in self.numbers.items()
            for position, number in enumerate(numbers)
            if number
        }

    def add_shared(self, shared: Mapping[str, float]) -> None:
        """Add the numbers of other workers, except those that this version does not know."""
        for name, number in shared.items():
            if not name.startswith(_PREFIX):
                continue
            encoded, _, position = name.removeprefix(_PREFIX).partition(_TAB)
            family_name, *labels = json.loads(encoded)
            family = BY_NAME.get(family_name)
            if family is not None and len(labels) == len(family.labels):
                numbers = self.of(family, tuple(labels))
                if int(position) < len(numbers):
                    numbers[int(position)] += number


@cache  # the labels are bounded, so the keys are as well
def _shared_name(key: Key) -> str:
    return f"{_PREFIX}{json.dumps(key)}{_TAB}"
