"""The plan of a campaign: which instances misbehave, how and when, and the requests.

Everything follows from the seed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from random import Random
from typing import Any

from nexus_gateway.testing.faults import CHANCE, POISON, Faults, assign

# The faults by instance, by the number of the request from which on they apply.
Phases = Mapping[int, Mapping[int, Faults]]

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
# Of so many requests the content is refused by every instance, with one of these.
POISONED = 0.02
POISONS = (400, 402, 403, 429)
MODES = ("", "", "", "", "fastest", "round-robin")
CHANCES = (0.2, 0.3, 0.5, 1.0)
# A request that hangs occupies a caller until a limit ends it.
SLOW_CHANCES = (0.1, 0.2, 0.3)
SLOW = frozenset({"hang", "role-hang", "comments", "stall", "oversized", "silent"})
# These are not failures, or have a chance of their own.
HARMLESS = frozenset({"delay", "jitter", "drip", "bytewise", "crlf", "no-done", "errors"})
# In the syntax of `mock --fault`; those without a comma apply together.
_MENU = (
    "delay=150, jitter=300, drip=10, bytewise crlf, no-done, errors=0.4, status=500, status=502, "
    "status=503 jitter=50, status=404, status=408, 429=0.3, 429=30, 401, status=402, status=403, "
    "redirect, html, empty, hang, reset, close, tls, role-hang, comments, cut=0, cut=2 drip=5, "
    "end=0, end=3, stall=0, stall=2, error-event=0, error-event=2 drip=5, garbage=0, garbage=2, "
    "oversized, again, silent"
)
MENU: tuple[Faults, ...] = tuple(assign(item.split(), 1)[1] for item in _MENU.split(","))


@dataclass(frozen=True, slots=True)
class Round:
    """The requests `first` to `end - 1`, served by one gateway."""

    first: int
    end: int
    phases: Phases


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """One request of a campaign."""

    number: int
    text: str  # of its message, which the mock sends back
    stream: bool
    headers: Mapping[str, str]
    model: str | None
    leaves_after_s: float | None  # None: the caller waits for the end
    poison: int = 0  # the status with which its content is refused, 0 if it is not

    def body(self) -> dict[str, Any]:
        body = {"messages": [{"role": "user", "content": self.text}], "stream": self.stream}
        return body if self.model is None else {**body, "model": self.model}


def rounds(requests: int, instances: int, bad: int, count: int, seed: int) -> list[Round]:
    """Plan `count` rounds in which the same `bad` instances misbehave."""
    rng = Random(f"{seed}:plan")
    culprits = sorted(rng.sample(range(1, instances + 1), bad))
    dealt = _deal(rng)
    count = min(count, requests)
    starts = [requests * n // count for n in range(count + 1)]
    return [
        Round(first, end, dict(_phases(first, end, culprits, dealt)))
        for first, end in pairwise(starts)
    ]


def _deal(rng: Random) -> Iterator[Faults]:
    """Yield sets of faults without end; none twice before each came once."""
    while True:
        yield from (_with_chance(faults, rng) for faults in rng.sample(MENU, len(MENU)))


def _with_chance(faults: Faults, rng: Random) -> Faults:
    if not faults.keys() - HARMLESS:
        return faults
    return {**faults, CHANCE: rng.choice(SLOW_CHANCES if faults.keys() & SLOW else CHANCES)}


def _phases(
    first: int, end: int, culprits: list[int], dealt: Iterator[Faults]
) -> Iterator[tuple[int, Mapping[int, Faults]]]:
    for n in range(PHASES):
        faults = {number: next(dealt) for number in culprits}
        yield first + (end - first) * n // PHASES, faults


def planned_request(number: int, seed: int) -> ChatRequest:
    """Return a campaign's request with this number."""
    rng = Random(f"{seed}:request:{number}")
    words = rng.choices(WORDS, k=rng.randint(FEWEST_WORDS, MOST_WORDS))
    mode = rng.choice(MODES)
    leaves = rng.random() < LEAVING
    # Drawn apart, so that the other requests stay the same.
    apart = Random(f"{seed}:poison:{number}")
    poison = apart.choice(POISONS) if apart.random() < POISONED else 0
    words += [f"{POISON}{poison}"] if poison else []
    return ChatRequest(
        number,
        # The number makes every text unique, so that swapped answers are noticed.
        text=" ".join([f"request {number}:", *words]),
        poison=poison,
        stream=rng.random() < STREAMED,
        headers={"X-Routing-Mode": mode} if mode else {},
        model=rng.choice((None, "auto", "nexus")),
        leaves_after_s=rng.uniform(0, LONGEST_STAY_S) if leaves else None,
    )
