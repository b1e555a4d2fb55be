"""One key of one provider: what is scheduled, measured, parked and toggled.

Several processes may hold the same instance; they exchange its state by `export_state` and
`merge_state`. A decision (a toggle, a park, a change of the circuit) is a mark: a list that begins
with a time in seconds. Of two marks the larger one wins, so the result depends neither on the
order of the messages nor on how often they arrive.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import InitVar, dataclass, field
from typing import Any

from nexus_gateway.provider import CHAT, Account, Provider
from nexus_gateway.routing.breaker import Breaker, State
from nexus_gateway.routing.health import Health, Sample
from nexus_gateway.routing.quotas import Quotas
from nexus_gateway.secret import Secret

BAD_KEY_PARK_S = 600.0
MAX_BAD_KEY_PARK_S = 3600.0
MAX_DOUBLINGS = 3  # three reach the longest park; an unlimited exponent would overflow
# After this time a backend that refused `stream_options` is asked for usage again: it costs one
# request in ten minutes, and the refusal may have been for that request alone.
STREAM_USAGE_RETRY_S = 600.0
MARKS = ("toggle", "freed", "rate_limited", "resting", "bad_key", "circuit", "reason")


@dataclass(frozen=True, slots=True)
class InstanceState:
    """What one process knows of an instance, or what all other processes know together."""

    marks: Mapping[str, list[Any]] = field(default_factory=dict)  # by their name in MARKS
    total_requests: int = 0  # those of ended processes included
    in_flight: int = 0
    means: Mapping[str, Sample] = field(default_factory=dict)  # by their name in `health.MEANS`


@dataclass(eq=False, kw_only=True)
class Instance:
    """A provider with a key and a model."""

    provider_name: str  # the entry point's name
    provider: Provider
    account: Account
    number: int  # as in NAME_KEY_3, or in NAME_BASE_URL_3 if the provider needs no key
    model: str  # the model to ask for if the caller names none
    clock: InitVar[Callable[[], float]]  # monotonic seconds
    takes_images: InitVar[bool | None] = None  # of `model`; None: as the provider lists it
    origin: str = ""  # the plugin's distribution and version

    def __post_init__(self, clock: Callable[[], float], takes_images: bool | None) -> None:
        self.name = self.provider.title
        if self.provider.needs_key:
            self.name += f" (Key #{self.number})"
        elif not self.provider.base_url and self.account.base_url:
            self.name += f" (URL #{self.number})"
        self.enabled = True
        self.in_flight = self.total_requests = self.bad_keys_in_a_row = 0
        self.elsewhere = InstanceState()  # what the other processes know of it
        self.breaker = Breaker(clock)
        self.health = Health(clock)
        self.quotas = Quotas(clock)
        self.warnings: set[str] = set()
        self._clock = clock
        self._takes_images = takes_images
        self._rate_limited_until_s = self._resting_until_s = 0.0
        self._no_stream_usage_until_s = 0.0
        self._bad_key_until_s = self._bad_key_at_s = 0.0
        self._freed_at_s = self._toggled_at_s = 0.0
        self._reason: str | None = None
        self._reason_at_s = 0.0

    def __repr__(self) -> str:
        return f"<Instance {self.name}>"

    @property
    def key(self) -> Secret:
        return self.account.key

    @property
    def plugin(self) -> str:
        """The provider's name with the distribution it comes from, for logs."""
        return f"{self.provider_name} ({self.origin})" if self.origin else self.provider_name

    @property
    def last_reason(self) -> str | None:
        """Why its last request failed; None if one has succeeded since."""
        return self._reason

    @last_reason.setter
    def last_reason(self, reason: str | None) -> None:
        if reason != self._reason:
            self._reason, self._reason_at_s = reason, self._clock()

    def update_from(self, other: Instance) -> None:
        """Take over the settings (model, account, images) of another instance of the same key."""
        self.model, self.account = other.model, other.account
        self._takes_images = other._takes_images
        self._no_stream_usage_until_s = 0.0

    def listed(self, kind: str) -> list[str]:
        return [m.id for m in self.provider.models if m.kind == kind]

    def serves(self, model: str, kind: str = CHAT) -> bool:
        listed = self.listed(kind)
        return model in listed or (model == self.model and (kind == CHAT or not listed))

    def model_for(self, kind: str) -> str:
        """Return the model to ask for if the caller names none."""
        return self.model if kind == CHAT else next(iter(self.listed(kind)), self.model)

    def takes_images_with(self, model: str) -> bool:
        """Return whether a model takes images; an unlisted one if the caller named it."""
        if model == self.model and self._takes_images is not None:
            return self._takes_images
        for listed in self.provider.models:
            if listed.id == model:
                return listed.images
        return model != self.model

    @property
    def asks_usage(self) -> bool:
        """Whether a stream may be asked for its usage by `stream_options`."""
        return self.provider.stream_usage and self._clock() >= self._no_stream_usage_until_s

    def disable_stream_usage(self) -> bool:
        """Ask for no usage for STREAM_USAGE_RETRY_S; return whether this is the first refusal."""
        first = not self._no_stream_usage_until_s
        self._no_stream_usage_until_s = self._clock() + STREAM_USAGE_RETRY_S
        return first

    def quota_left(self) -> float | None:
        """Return the share left of its most exhausted rate limit, None if none is known."""
        return self.quotas.share_left(self.total_requests)

    def park(self, seconds: float) -> None:
        """Exclude it because of a rate limit; a park gets longer, never shorter."""
        self._rate_limited_until_s = max(self._rate_limited_until_s, self._clock() + seconds)

    def cool_down(self, seconds: float) -> None:
        """Exclude it because it failed with a Retry-After; as `park`, never shorter."""
        self._resting_until_s = max(self._resting_until_s, self._clock() + seconds)

    def park_bad_key(self) -> None:
        """Exclude it because its key was refused: 10 minutes, doubling up to an hour.

        Requests that were in flight at the first refusal do not double it.
        """
        if self._bad_key_until_s > self._clock():
            return
        doublings = min(self.bad_keys_in_a_row, MAX_DOUBLINGS)
        seconds = min(BAD_KEY_PARK_S * 2**doublings, MAX_BAD_KEY_PARK_S)
        self.bad_keys_in_a_row += 1
        self._bad_key_at_s = self._clock()
        self._bad_key_until_s = self._bad_key_at_s + seconds

    def parked_for_s(self) -> float:
        until_s = max(self._rate_limited_until_s, self._resting_until_s, self._bad_key_until_s)
        return max(0.0, until_s - self._clock())

    def park_reason(self) -> str | None:
        """Return `bad_key`, `rate_limited`, `resting`, or None."""
        now = self._clock()
        if self._bad_key_until_s > now:
            return "bad_key"
        if self._rate_limited_until_s > now:
            return "rate_limited"
        return "resting" if self._resting_until_s > now else None

    def enable(self) -> None:
        """Switch it on, and unpark a refused key; the circuit stays as it is."""
        self.enabled = True
        self._toggled_at_s = self._clock()
        self.unpark_key(self._toggled_at_s)

    def disable(self) -> None:
        self.enabled = False
        self._toggled_at_s = self._clock()

    def unpark_key(self, at_s: float | None = None) -> None:
        """Let a refused key be tried again, unless it was refused after a time (None: now)."""
        self._freed_at_s = at_s = self._clock() if at_s is None else at_s
        if self._bad_key_at_s <= at_s:
            self._bad_key_until_s = 0.0
            self.bad_keys_in_a_row = 0

    def available_in_s(self) -> float | None:
        """Return how long until it may be chosen: 0 now, None while it is switched off."""
        return max(self.parked_for_s(), self.breaker.ready_in_s()) if self.enabled else None

    @property
    def is_available(self) -> bool:
        """Whether it is enabled, not parked and its circuit closed; half open is not enough."""
        return self.enabled and self.breaker.state() is State.CLOSED and not self.parked_for_s()

    def export_state(self) -> InstanceState:
        """Return what this process knows of it, for the others; marks never set are left out."""
        marks: dict[str, list[Any]] = {
            "toggle": [self._toggled_at_s, self.enabled],
            "freed": [self._freed_at_s],
            "rate_limited": [self._rate_limited_until_s],
            "resting": [self._resting_until_s],
            "bad_key": [self._bad_key_until_s, self._bad_key_at_s, self.bad_keys_in_a_row],
            "circuit": [*self.breaker.last_change],
            "reason": [self._reason_at_s, self._reason or ""],
        }
        return InstanceState(
            marks={name: mark for name, mark in marks.items() if mark[0]},
            total_requests=self.total_requests,
            in_flight=self.in_flight,
            means=self.health.local(),
        )

    def merge_state(self, state: InstanceState) -> None:
        """Apply newer decisions and longer parks, and replace the figures, of all others."""
        marks = state.marks
        if (toggle := marks.get("toggle")) and toggle[0] > self._toggled_at_s:
            self._toggled_at_s, self.enabled = toggle[0], bool(toggle[1])
        if (freed := marks.get("freed")) and freed[0] > self._freed_at_s:
            self.unpark_key(freed[0])
        if limited := marks.get("rate_limited"):
            self._rate_limited_until_s = max(self._rate_limited_until_s, limited[0])
        if resting := marks.get("resting"):
            self._resting_until_s = max(self._resting_until_s, resting[0])
        if bad_key := marks.get("bad_key"):
            until_s, at_s, in_a_row = bad_key
            if until_s > self._bad_key_until_s and at_s > self._freed_at_s:
                self._bad_key_until_s, self._bad_key_at_s = until_s, at_s
                self.bad_keys_in_a_row = max(self.bad_keys_in_a_row, in_a_row)
        if circuit := marks.get("circuit"):
            self.breaker.merge_remote((circuit[0], bool(circuit[1])))
        if (reason := marks.get("reason")) and reason[0] > self._reason_at_s:
            self._reason_at_s, self._reason = reason[0], reason[1] or None
        self.health.merge_remote(state.means)
        self.elsewhere = state
