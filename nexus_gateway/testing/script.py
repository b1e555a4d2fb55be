"""A script: which faults come when.

Each line is a wait, counted from the line before, and the faults that then hold:

    # wait          faults, as after --fault; `ok` takes them away
    10s             2:status=500
    200requests     2:ok 3:cut=2 3:drip=20
    5s              ok
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from nexus_gateway.testing.faults import Value, WrongFault, assign

_WAIT = re.compile(r"(?P<number>[0-9]{1,9}(?:\.[0-9]{1,6})?)(?P<unit>s|requests)")


@dataclass(frozen=True, slots=True)
class Step:
    """One line.

    Args:
        after_s: how long to wait; 0 where requests are counted.
        after_requests: how many requests to wait for; 0 where time is.
        faults: by the instance's number, the whole set of each that changes.
    """

    after_s: float = 0.0
    after_requests: int = 0
    faults: dict[int, dict[str, Value]] = field(default_factory=dict)


def read_script(text: str, instances: int) -> list[Step]:
    """Read a script.

    Raises:
        WrongFault: a line of it cannot be used; the text names it.
    """
    return [*_steps(text, instances)]


def _steps(text: str, instances: int) -> Iterator[Step]:
    for number, line in enumerate(text.splitlines(), 1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        try:
            yield _step(words, instances)
        except WrongFault as error:
            raise WrongFault(f"line {number}: {error}") from None


def _step(words: list[str], instances: int) -> Step:
    wait = _WAIT.fullmatch(words[0])
    if wait is None or len(words) < 2:
        raise WrongFault("write a wait such as 10s or 200requests, then the faults, or ok.")
    faults = assign(words[1:], instances)
    if wait["unit"] == "s":
        return Step(after_s=float(wait["number"]), faults=faults)
    if "." in wait["number"]:
        raise WrongFault("requests are counted in whole numbers.")
    return Step(after_requests=int(wait["number"]), faults=faults)
