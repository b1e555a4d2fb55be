"""The circuit breaker of one model of one instance.

    CLOSED ──3 failures in a row──▶ OPEN ──60 s──▶ HALF_OPEN ──success──▶ CLOSED
                                      ▲                 │
                                      └────failure──────┘

Rules:
1. The state changes when it is read, by the clock; there is no timer and no task.
2. HALF_OPEN admits exactly one probe; a probe without an outcome makes room for the next.
3. A permit carries the generation of the state it was given in. Each change of state begins a new
   generation, and outcomes of older permits are ignored: streams live long.
4. A probe's first content closes the circuit, so that a long stream does not keep other requests
   out; until an answer has ended well, one more failure opens it again.
5. A change in another process is applied if it is later than the last one here. Moving to
   HALF_OPEN is not exchanged: every process knows by the clock when it is due.
6. It is *doubtful* if every failure since the last success may have been its request's own fault:
   no other instance has answered that request. As the last resort it admits requests although it
   is open (Envoy's panic threshold): one caller's requests must not take away the last instance.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

THRESHOLD = 3
COOLDOWN_S = 60.0
PROBE_WAIT_S = 1.0  # a guess at how long a probe takes


class State(StrEnum):
    CLOSED = "CLOSED"
    OPEN = "OPEN"
    HALF_OPEN = "HALF_OPEN"


@dataclass(slots=True)
class Permit:
    """Permission for one attempt; `probe`: it is the one that HALF_OPEN admits."""

    generation: int
    probe: bool


class Breaker:
    """A circuit breaker; `clock` is in monotonic seconds."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._state = State.CLOSED
        self._generation = 0
        self.failures_in_a_row = 0  # since the last success or change of state
        self._failures_since_success = 0
        self._opened_at_s = 0.0
        self._probing = False
        self._is_doubted = False  # an attempt has failed since the last success, counted or not
        self._is_certain = False  # a failure since the last success was no request's own fault
        # When it last opened or closed, in seconds of its clock, whether it opened, and doubtfully.
        self.last_change = (0.0, False, False)
        # It opened and no answer has ended well since; it may be closed again already. If another
        # process closed it, that process awaits the success.
        self.awaits_success = False

    def merge_remote(self, change: tuple[float, bool, bool]) -> None:
        """Open or close as another process did, if that is later than the last change here."""
        if change <= self.last_change:
            return
        at_s, opened, is_doubtful = change
        if opened:
            self._opened_at_s = at_s
        else:
            self._failures_since_success = 0
        self._is_certain = opened and not is_doubtful
        self.awaits_success = opened
        self._move(State.OPEN if opened else State.CLOSED)
        self.last_change = change

    def state(self) -> State:
        if self._state is State.OPEN and self._clock() - self._opened_at_s >= COOLDOWN_S:
            self._move(State.HALF_OPEN)
        return self._state

    def admits(self) -> bool:
        if self._state is State.CLOSED:
            return True
        return self.state() is State.HALF_OPEN and not self._probing

    @property
    def is_healthy(self) -> bool:
        """Whether it is closed, without a failure since the last success."""
        is_closed = self.state() is State.CLOSED
        return is_closed and self.failures_in_a_row == 0 and not self._is_doubted

    @property
    def is_doubtful(self) -> bool:
        """Whether it is not closed, and only by failures that may be their requests' own."""
        return self.state() is not State.CLOSED and not self._is_certain

    def ready_in_s(self) -> float:
        """Return how long until it admits: 0 now; a guess while a probe is running."""
        if self.admits():
            return 0.0
        if self._state is State.HALF_OPEN:
            return PROBE_WAIT_S
        # Subtracted as in `state`, so that rounding never makes it 0 while the circuit is open.
        return COOLDOWN_S - (self._clock() - self._opened_at_s)

    def acquire(self) -> Permit:
        """Take a permit; RuntimeError if it does not admit (check `admits` first)."""
        if not self.admits():
            raise RuntimeError("the circuit admits no attempt")
        self._probing = self._state is State.HALF_OPEN
        return Permit(self._generation, self._probing)

    def acquire_early(self) -> Permit:
        """Probe an open circuit before its time, as the last resort; or go beside a probe."""
        if self.state() is State.OPEN:
            self._move(State.HALF_OPEN)
        if self._probing and not self._is_certain:
            return Permit(self._generation, False)
        return self.acquire()

    def first_token(self, permit: Permit) -> Permit:
        """Record an attempt's first content; return the permit to continue with."""
        if not permit.probe or permit.generation != self._generation:
            return permit
        self._close()
        self.failures_in_a_row = THRESHOLD - 1
        return Permit(self._generation, False)

    def success(self, permit: Permit) -> bool:
        """Record an attempt that ended well; return whether it counts and the circuit is closed."""
        if permit.generation != self._generation:
            return False
        if self._state is State.HALF_OPEN:
            self._close()
        self.failures_in_a_row = self._failures_since_success = 0
        self.awaits_success = self._is_certain = self._is_doubted = False
        return True

    def doubt(self) -> None:
        """Record that an attempt failed which may never count: it is healthy after a success."""
        self._is_doubted = True

    def failure(self, permit: Permit, *, is_doubtful: bool = False) -> int:
        """Record an attempt that failed; return 0, or the number of failures if it opened.

        They are counted since the last success, probes included. `is_doubtful`: see rule 6.
        """
        if permit.generation != self._generation:
            return 0
        self.failures_in_a_row += 1
        self._failures_since_success += 1
        self._is_certain = self._is_certain or not is_doubtful
        if self._state is not State.HALF_OPEN and self.failures_in_a_row < THRESHOLD:
            return 0
        self._opened_at_s = self._clock()
        self.last_change = (self._opened_at_s, True, not self._is_certain)
        self.awaits_success = True
        self._move(State.OPEN)
        return self._failures_since_success

    def release(self, permit: Permit) -> None:
        """Record an attempt without an outcome for the instance."""
        if permit.probe and permit.generation == self._generation:
            self._probing = False

    def _close(self) -> None:
        self.last_change = (self._clock(), False, False)
        self._move(State.CLOSED)

    def _move(self, state: State) -> None:
        self._state = state
        self._generation += 1
        self.failures_in_a_row = 0
        self._probing = False
