"""What was counted, by family and labels: plain numbers, to be added up and sent about.

A key is the family's name and the values of its labels, in their order.
"""

from __future__ import annotations

import json
from bisect import bisect_left
from collections.abc import Mapping

from nexus_gateway.metrics.families import BY_NAME, COUNTER, HISTOGRAM

Key = tuple[str, ...]
_PREFIX = "metrics "
# Stands between key and part in a shared name; JSON never holds it.
_TAB = "\t"
_SUM = "sum"


class Counts:
    """Counters and histograms.

    Attributes:
        counters: the values.
        histograms: for each how many values fell into each bucket, the last without a bound; then
            the sum of the values.
    """

    def __init__(self) -> None:
        self.counters: dict[Key, float] = {}
        self.histograms: dict[Key, list[float]] = {}
        self._names: dict[Key, str] = {}

    def add(self, key: Key, amount: float = 1) -> None:
        """Count."""
        self.counters[key] = self.counters.get(key, 0) + amount

    def histogram(self, key: Key) -> list[float]:
        """Return a histogram's numbers, to be given to `observe` as often as one likes."""
        found = self.histograms.get(key)
        if found is None:
            found = self.histograms[key] = [0] * (len(BY_NAME[key[0]].buckets) + 2)
        return found

    def copy(self) -> Counts:
        """Return a copy that can be added to."""
        copied = Counts()
        copied.counters = dict(self.counters)
        copied.histograms = {key: list(numbers) for key, numbers in self.histograms.items()}
        copied._names = self._names
        return copied

    def shared(self) -> dict[str, float]:
        """Return all numbers that are not 0 under names that `add_shared` reads."""
        said: dict[str, float] = {}
        for key, count in self.counters.items():
            if count:
                said[self._name(key)] = count
        for key, numbers in self.histograms.items():
            name = self._name(key)
            for number, count in enumerate(numbers[:-1]):
                if count:
                    said[f"{name}{number}"] = count
            said[name + _SUM] = numbers[-1]
        return said

    def add_shared(self, said: Mapping[str, float]) -> None:
        """Add what others counted; what this version does not know is left out."""
        for name, count in said.items():
            if not name.startswith(_PREFIX):
                continue
            written, _, part = name.removeprefix(_PREFIX).partition(_TAB)
            key: Key = tuple(json.loads(written))
            family = BY_NAME.get(key[0])
            if family is None or len(key) - 1 != len(family.labels):
                continue
            if family.sort == COUNTER and not part:
                self.add(key, count)
            elif family.sort == HISTOGRAM and part:
                numbers = self.histogram(key)
                place = -1 if part == _SUM else int(part)
                if place < len(numbers) - 1:
                    numbers[place] += count

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
    numbers[bisect_left(buckets, value)] += 1
    numbers[-1] += value
