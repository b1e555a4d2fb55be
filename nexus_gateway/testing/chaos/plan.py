"""What a campaign does: who misbehaves how and when, and what is asked. All of it by the seed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from random import Random
from typing import Any

from nexus_gateway.testing.faults import CHANCE, Faults

PHASES = 2
LEAVING = 0.02
LONGEST_STAY_S = 0.05
STREAMED = 0.6
FEWEST_WORDS, MOST_WORDS = 4, 20
WORDS = (
    "alpha",
    "Grüße",
    "世界",
    'a "quoted" word',
    "line\nbreak",
    "data: ",
    "[DONE]",
    "🙂",
    "omega",
)
MODES = ("", "", "", "", "fastest", "round-robin")
CHANCES = (0.2, 0.3, 0.5, 1.0)
# A request that hangs keeps a caller for as long as the limits let it.
SLOW_CHANCES = (0.1, 0.2, 0.3)
SLOW = frozenset({"hang", "role-hang", "comments", "stall", "oversized"})
# These are no failures, or have a chance of their own.
HARMLESS = frozenset({"delay", "jitter", "drip", "bytewise", "crlf", "no-done", "errors"})
MENU: tuple[Faults, ...] = (
    {"delay": 150},
    {"jitter": 300},
    {"drip": 10},
    {"bytewise": None, "crlf": None},
    {"no-done": None},
    {"errors": 0.4},
    {"status": 500},
    {"status": 502},
    {"status": 503, "jitter": 50},
    {"status": 404},
    {"status": 408},
    {"429": 0.3},
    {"429": 30},
    {"401": None},
    {"status": 402},
    {"status": 403},
    {"redirect": "http://127.0.0.1:9/v1"},
    {"html": None},
    {"empty": None},
    {"hang": None},
    {"reset": None},
    {"close": None},
    {"tls": None},
    {"role-hang": None},
    {"comments": None},
    {"cut": 0},
    {"cut": 2, "drip": 5},
    {"end": 0},
    {"end": 3},
    {"stall": 0},
    {"stall": 2},
    {"error-event": 0},
    {"error-event": 2, "drip": 5},
    {"garbage": 0},
    {"garbage": 2},
    {"oversized": 16 * 1024 * 1024},
)


@dataclass(frozen=True, slots=True)
class Phase:
    """Some requests, while the same faults hold.

    Args:
        first: the first request's number.
        faults: by the number of the instance.
    """

    first: int
    faults: Mapping[int, Faults]


@dataclass(frozen=True, slots=True)
class Round:
    """The requests that one gateway serves.

    Args:
        first: the first request's number.
        end: the number after the last one's.
        phases: the first begins with the first request.
    """

    first: int
    end: int
    phases: tuple[Phase, ...]


@dataclass(frozen=True, slots=True)
class Asked:
    """One request.

    Args:
        number: of it.
        text: what it says, and what the mock is to say.
        stream: whether it is answered as a stream.
        headers: beside the usual ones.
        model: what it names, None for nothing.
        leaves_after_s: when its caller leaves; None: stays to the end.
    """

    number: int
    text: str
    stream: bool
    headers: Mapping[str, str]
    model: str | None
    leaves_after_s: float | None

    def body(self) -> dict[str, Any]:
        """Return what is sent."""
        body = {"messages": [{"role": "user", "content": self.text}], "stream": self.stream}
        return body if self.model is None else {**body, "model": self.model}


def rounds(requests: int, instances: int, bad: int, count: int, seed: int) -> list[Round]:
    """Plan a campaign.

    Args:
        requests: how many in all.
        instances: how many can be asked.
        bad: how many of them misbehave; always the same ones.
        count: how many rounds.
        seed: of all chance.
    """
    rng = Random(f"{seed}:plan")
    culprits = sorted(rng.sample(range(1, instances + 1), bad))
    dealt = _deal(rng)
    count = min(count, requests)
    starts = [requests * n // count for n in range(count + 1)]
    return [
        Round(first, end, tuple(_phases(first, end, culprits, dealt)))
        for first, end in pairwise(starts)
    ]


def _deal(rng: Random) -> Iterator[Faults]:
    """Deal from the menu without end, so that each comes before one comes twice."""
    while True:
        yield from (_with_chance(faults, rng) for faults in rng.sample(MENU, len(MENU)))


def _with_chance(faults: Faults, rng: Random) -> Faults:
    if not faults.keys() - HARMLESS:
        return faults
    return {**faults, CHANCE: rng.choice(SLOW_CHANCES if faults.keys() & SLOW else CHANCES)}


def _phases(first: int, end: int, culprits: list[int], dealt: Iterator[Faults]) -> Iterator[Phase]:
    for n in range(PHASES):
        faults = {number: next(dealt) for number in culprits}
        yield Phase(first + (end - first) * n // PHASES, faults)


def asked(number: int, seed: int) -> Asked:
    """Return one of a campaign's requests."""
    rng = Random(f"{seed}:request:{number}")
    words = rng.choices(WORDS, k=rng.randint(FEWEST_WORDS, MOST_WORDS))
    mode = rng.choice(MODES)
    leaves = rng.random() < LEAVING
    return Asked(
        number,
        # The number makes it unlike any other: answers that are mixed up would show.
        text=" ".join([f"request {number}:", *words]),
        stream=rng.random() < STREAMED,
        headers={"X-Routing-Mode": mode} if mode else {},
        model=rng.choice((None, "auto", "nexus")),
        leaves_after_s=rng.uniform(0, LONGEST_STAY_S) if leaves else None,
    )
