"""The circuit of one instance.

    CLOSED ──3 failures in a row──▶ OPEN ──60 s──▶ HALF_OPEN ──success──▶ CLOSED
                                      ▲                 │
                                      └────failure──────┘

Rules:
1. States move when asked, by the clock; there is no timer and no task.
2. HALF_OPEN admits exactly one probe; a probe that ends without a word frees its place.
3. A permit carries the generation of the state it was given in. Each change of state begins
   a new one, and what an older permit has to say is dropped: streams live long.
4. A probe's first content closes the circuit, so that a long stream keeps nobody away; until
   a whole answer has ended well, one more failure opens it again.
5. A circuit that opened or closed in another process is followed when it did so later than this
   one. Moving to HALF_OPEN is no turn: every process knows by the clock when it is time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

THRESHOLD = 3
COOLDOWN_S = 60.0
PROBE_OUT_S = 1.0


class State(StrEnum):
    """The states of a circuit."""

    CLOSED = "CLOSED"
    OPEN = "OPEN"
    HALF_OPEN = "HALF_OPEN"


@dataclass(frozen=True, slots=True)
class Permit:
    """Leave to make one attempt.

    Args:
        generation: of the state it was given in.
        probe: whether it is the one that HALF_OPEN admits.
    """

    generation: int
    probe: bool


class Breaker:
    """A circuit breaker.

    Args:
        clock: monotonic seconds.
        threshold: how many failures in a row open it.
        cooldown_s: how long it stays open.
    """

    def __init__(
        self,
        clock: Callable[[], float],
        *,
        threshold: int = THRESHOLD,
        cooldown_s: float = COOLDOWN_S,
    ) -> None:
        self._clock = clock
        self._threshold = threshold
        self._cooldown_s = cooldown_s
        self._state = State.CLOSED
        self._generation = 0
        self._failures = 0
        self._since_good = 0
        self._awaits_good = False
        self._opened_s = 0.0
        self._turn = (0.0, False)
        self._probing = False

    @property
    def turn(self) -> tuple[float, bool]:
        """When it last opened or closed, in seconds of its clock, and whether it opened."""
        return self._turn

    def merge_remote(self, turn: tuple[float, bool]) -> None:
        """Open or close as the same circuit did elsewhere, if that was later than its own turn."""
        if turn <= self._turn:
            return
        at_s, opened = turn
        if opened:
            self._opened_s = at_s
        else:
            self._since_good = 0
        self._awaits_good = opened
        self._move(State.OPEN if opened else State.CLOSED)
        self._turn = turn

    def state(self) -> State:
        """Return the state as of now."""
        if self._state is State.OPEN and self._clock() - self._opened_s >= self._cooldown_s:
            self._move(State.HALF_OPEN)
        return self._state

    def admits(self) -> bool:
        """Tell whether an attempt may be made now."""
        state = self.state()
        return state is State.CLOSED or (state is State.HALF_OPEN and not self._probing)

    @property
    def is_healthy(self) -> bool:
        """Whether it is closed, and the last that was heard was good."""
        return self.state() is State.CLOSED and self._failures == 0

    @property
    def failures_in_a_row(self) -> int:
        """How many requests have failed since the last good one, or since it last opened."""
        return self._failures

    @property
    def awaits_success(self) -> bool:
        """Whether it opened and no answer has ended well since, though it may be closed again.

        Where it was closed in another process, that one waits.
        """
        return self._awaits_good

    def ready_in_s(self) -> float:
        """Return how long until it admits: 0 now; a guess while a probe is out."""
        if self.admits():
            return 0.0
        if self._state is State.HALF_OPEN:
            return PROBE_OUT_S
        # Subtracted as in `state`, so that rounding never makes it 0 while the circuit is shut.
        return self._cooldown_s - (self._clock() - self._opened_s)

    def acquire(self) -> Permit:
        """Take a permit.

        Raises:
            RuntimeError: it does not admit (ask `admits` first).
        """
        if not self.admits():
            raise RuntimeError("the circuit admits nobody")
        self._probing = self._state is State.HALF_OPEN
        return Permit(self._generation, self._probing)

    def acquire_early(self) -> Permit:
        """Probe an open circuit before its time, as the last resort."""
        if self.state() is State.OPEN:
            self._move(State.HALF_OPEN)
        return self.acquire()

    def first_token(self, permit: Permit) -> Permit:
        """Say that a permit's attempt has its first content; return the permit to go on with."""
        if not (permit.probe and self._is_current(permit)):
            return permit
        self._close()
        self._failures = self._threshold - 1
        return Permit(self._generation, False)

    def success(self, permit: Permit) -> bool:
        """Say that a permit's attempt ended well; return whether that counts: then it is closed."""
        if not self._is_current(permit):
            return False
        if self._state is State.HALF_OPEN:
            self._close()
        self._failures = self._since_good = 0
        self._awaits_good = False
        return True

    def failure(self, permit: Permit) -> int:
        """Say that a permit's attempt failed.

        Returns:
            Where that opened it, how many have failed since the last good one, early ones and
            probes alike; else 0.
        """
        if not self._is_current(permit):
            return 0
        self._failures += 1
        self._since_good += 1
        if self._state is not State.HALF_OPEN and self._failures < self._threshold:
            return 0
        self._opened_s = self._clock()
        self._turn = (self._opened_s, True)
        self._awaits_good = True
        self._move(State.OPEN)
        return self._since_good

    def release(self, permit: Permit) -> None:
        """Say that a permit's attempt ended without telling anything of the instance."""
        if permit.probe and self._is_current(permit):
            self._probing = False

    def _is_current(self, permit: Permit) -> bool:
        return permit.generation == self._generation

    def _close(self) -> None:
        self._turn = (self._clock(), False)
        self._move(State.CLOSED)

    def _move(self, state: State) -> None:
        self._state = state
        self._generation += 1
        self._failures = 0
        self._probing = False
