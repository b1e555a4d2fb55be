"""One key of one provider: what is scheduled, broken, measured and toggled.

Several processes may hold the same instance. What one of them decides about it (a toggle, a park,
a circuit that turns) is a set of marks that the others follow: each is a list that begins with a
time in seconds, and of two the larger one holds. So it does not matter in which order, how often
or by which way they come. `nexus_gateway.telemetry.shared` carries them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nexus_gateway.provider import CHAT, Account, Provider
from nexus_gateway.routing.breaker import Breaker, State
from nexus_gateway.routing.health import Health
from nexus_gateway.routing.quotas import Quotas
from nexus_gateway.secret import Secret

BAD_KEY_PARK_S = 600.0
LONGEST_BAD_KEY_PARK_S = 3600.0
# So long a backend that refused it is not asked for usage: one request in ten minutes pays for
# knowing better, be it that only that one was refused, or that the backend has learnt it.
USAGE_LEFT_S = 600.0
MOST_DOUBLINGS = 3  # three reach the longest park; a large burst would overflow
MARKS = ("toggle", "freed", "rate_limited", "resting", "bad_key", "circuit", "reason")
Marks = Mapping[str, Sequence[Any]]


@dataclass(slots=True)
class RemoteCounts:
    """What the other processes do with an instance.

    Args:
        in_flight: their requests in flight.
        total_requests: all that they had, and those that are gone.
    """

    in_flight: int = 0
    total_requests: int = 0


class Instance:
    """A provider with a key and a model.

    Args:
        provider_name: the entry point's name.
        provider: how to talk to the backend.
        account: its key and its address.
        number: as in NAME_KEY_3, or NAME_BASE_URL_3 where no key is needed.
        model: what it serves when nobody asks for another.
        clock: monotonic seconds.
        takes_images: whether `model` does; None: as the provider says.
        origin: the plugin's distribution and version.
    """

    def __init__(
        self,
        *,
        provider_name: str,
        provider: Provider,
        account: Account,
        number: int,
        model: str,
        clock: Callable[[], float],
        takes_images: bool | None = None,
        origin: str = "",
    ) -> None:
        self.name = provider.title
        if provider.needs_key:
            self.name += f" (Key #{number})"
        elif not provider.base_url and account.base_url:
            self.name += f" (URL #{number})"
        self.provider_name = provider_name
        self.provider = provider
        self.account = account
        self.number = number
        self.model = model
        self.origin = origin
        self.enabled = True
        self.in_flight = 0
        self.total_requests = 0
        self.elsewhere = RemoteCounts()
        self.breaker = Breaker(clock)
        self.health = Health(clock)
        self.quotas = Quotas(clock)
        self.bad_keys_in_a_row = 0
        self.warnings: set[str] = set()
        self._clock = clock
        self._takes_images = takes_images
        self._rate_limited_until_s = self._resting_until_s = self._usage_left_until_s = 0.0
        self._bad_key_until_s = 0.0
        self._bad_key_s = 0.0
        self._freed_s = 0.0
        self._toggled_s = 0.0
        self._reason: str | None = None
        self._reason_s = 0.0

    def __repr__(self) -> str:
        return f"<Instance {self.name}>"

    @property
    def key(self) -> Secret:
        """Its key; empty where none is needed."""
        return self.account.key

    @property
    def plugin(self) -> str:
        """The plugin behind it, and who made that: for logs."""
        return f"{self.provider_name} ({self.origin})" if self.origin else self.provider_name

    @property
    def last_reason(self) -> str | None:
        """Why its last request failed, None when one went well since; kept while it is shut out."""
        return self._reason

    @last_reason.setter
    def last_reason(self, reason: str | None) -> None:
        if reason != self._reason:
            self._reason, self._reason_s = reason, self._clock()

    def update_from(self, other: Instance) -> None:
        """Serve from now on as another instance of the same key is set to: its model and such."""
        self.model, self.account = other.model, other.account
        self._takes_images = other._takes_images
        self._usage_left_until_s = 0.0

    def _listed(self, kind: str) -> list[str]:
        return [m.id for m in self.provider.models if m.kind == kind]

    def serves(self, model: str, kind: str = CHAT) -> bool:
        """Tell whether it is known to serve a model of a kind."""
        listed = self._listed(kind)
        return model in listed or (model == self.model and (kind == CHAT or not listed))

    def model_for(self, kind: str) -> str:
        """Return the model it is asked for when the caller names none."""
        return self.model if kind == CHAT else next(iter(self._listed(kind)), self.model)

    def knows(self, kind: str) -> bool:
        """Tell whether the provider lists what it serves of a kind."""
        return bool(self._listed(kind))

    def takes_images_with(self, model: str) -> bool:
        """Tell whether a model takes images.

        What nobody lists is trusted where a caller named it, and not where it is our own choice.
        """
        if model == self.model and self._takes_images is not None:
            return self._takes_images
        for known in self.provider.models:
            if known.id == model:
                return known.images
        return model != self.model

    @property
    def asks_usage(self) -> bool:
        """Whether a stream may be asked for its usage by `stream_options`."""
        return self.provider.stream_usage and self._clock() >= self._usage_left_until_s

    def disable_stream_usage(self) -> bool:
        """Note that it refused to be asked so; tell whether that is news."""
        news = not self._usage_left_until_s
        self._usage_left_until_s = self._clock() + USAGE_LEFT_S
        return news

    def quota_left(self) -> float | None:
        """Return the share left of the rate limit that is nearest, None when none is known."""
        return self.quotas.share_left(self.total_requests)

    def park(self, seconds: float) -> None:
        """Leave it alone because of a rate limit; a park gets longer, never shorter."""
        self._rate_limited_until_s = max(self._rate_limited_until_s, self._clock() + seconds)

    def cool_down(self, seconds: float) -> None:
        """Leave it alone as it failed and asks for it; a rest gets longer, never shorter."""
        self._resting_until_s = max(self._resting_until_s, self._clock() + seconds)

    def park_bad_key(self) -> None:
        """Leave it alone because its key was refused: 10 minutes, doubling up to an hour.

        Requests that were on their way when the first one was refused do not double it.
        """
        if self._bad_key_until_s > self._clock():
            return
        doublings = min(self.bad_keys_in_a_row, MOST_DOUBLINGS)
        seconds = min(BAD_KEY_PARK_S * 2**doublings, LONGEST_BAD_KEY_PARK_S)
        self.bad_keys_in_a_row += 1
        self._bad_key_s = self._clock()
        self._bad_key_until_s = self._bad_key_s + seconds

    def good_key(self) -> None:
        """Note that the key works."""
        self.bad_keys_in_a_row = 0

    def parked_for_s(self) -> float:
        """Return how long it is still parked, 0 when it is not."""
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
        """Switch it on, and give a parked key another chance; the circuit stays as it is."""
        self.enabled = True
        self._toggled_s = self._clock()
        self._free(self._toggled_s)

    def disable(self) -> None:
        """Switch it off: it gets nothing new."""
        self.enabled = False
        self._toggled_s = self._clock()

    def free_key(self) -> None:
        """Give a parked key another chance; all else stays as it is."""
        self._free(self._clock())

    def _free(self, at_s: float) -> None:
        """Give a key that was refused before a time another chance."""
        self._freed_s = at_s
        if self._bad_key_s <= at_s:
            self._bad_key_until_s = 0.0
            self.bad_keys_in_a_row = 0

    def available_in_s(self) -> float | None:
        """Return how long until it may be chosen: 0 now, None while it is switched off."""
        return max(self.parked_for_s(), self.breaker.ready_in_s()) if self.enabled else None

    @property
    def is_available(self) -> bool:
        """Whether it serves: switched on, not parked, its circuit closed.

        One that is half open may be chosen, for a probe; but nobody can count on it.
        """
        return self.enabled and self.breaker.state() is State.CLOSED and not self.parked_for_s()

    def export_state(self) -> dict[str, list[Any]]:
        """Return what was decided about it; what never was, is left out."""
        turned_s, opened = self.breaker.turn
        found: dict[str, list[Any]] = {
            "toggle": [self._toggled_s, self.enabled],
            "freed": [self._freed_s],
            "rate_limited": [self._rate_limited_until_s],
            "resting": [self._resting_until_s],
            "bad_key": [self._bad_key_until_s, self._bad_key_s, self.bad_keys_in_a_row],
            "circuit": [turned_s, opened],
            "reason": [self._reason_s, self._reason or ""],
        }
        return {name: mark for name, mark in found.items() if mark[0]}

    def merge_state(self, marks: Marks) -> None:
        """Do as was decided elsewhere, where that is newer, or a longer park."""
        if (toggle := marks.get("toggle")) and toggle[0] > self._toggled_s:
            self._toggled_s, self.enabled = toggle[0], bool(toggle[1])
        if (freed := marks.get("freed")) and freed[0] > self._freed_s:
            self._free(freed[0])
        if limited := marks.get("rate_limited"):
            self._rate_limited_until_s = max(self._rate_limited_until_s, limited[0])
        if resting := marks.get("resting"):
            self._resting_until_s = max(self._resting_until_s, resting[0])
        if bad_key := marks.get("bad_key"):
            until_s, at_s, in_a_row = bad_key
            if until_s > self._bad_key_until_s and at_s > self._freed_s:
                self._bad_key_until_s, self._bad_key_s = until_s, at_s
                self.bad_keys_in_a_row = max(self.bad_keys_in_a_row, in_a_row)
        if circuit := marks.get("circuit"):
            self.breaker.merge_remote((circuit[0], bool(circuit[1])))
        if (reason := marks.get("reason")) and reason[0] > self._reason_s:
            self._reason_s, self._reason = reason[0], reason[1] or None
