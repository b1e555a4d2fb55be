"""What was counted, by family and labels: plain numbers, to be added up and sent about.

A key is the family's name and the values of its labels, in their order. Behind each stand one
number for a counter; for a histogram how many values fell into each bucket, the last of which has
no bound, and then the sum of the values.
"""

from __future__ import annotations

import json
from bisect import bisect_left
from collections.abc import Mapping, Sequence

from nexus_gateway.metrics.families import BY_NAME, HISTOGRAM

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
