"""One key of one provider: what is scheduled, broken, measured and toggled."""

from __future__ import annotations

from collections.abc import Callable

from nexus_gateway.breaker import Breaker
from nexus_gateway.health import Health
from nexus_gateway.provider import Provider
from nexus_gateway.secret import Secret

BAD_KEY_PARK_S = 600.0
LONGEST_BAD_KEY_PARK_S = 3600.0
MOST_DOUBLINGS = 3  # three reach the longest park; a large burst would overflow


class Instance:
    """A provider with a key and a model.

    Args:
        provider_name: the entry point's name.
        provider: how to talk to the backend.
        key: its credential; empty where none is needed.
        number: of the key, as in NAME_KEY_3.
        model: what it serves when nobody asks for another.
        base_url: where its API is.
        clock: monotonic seconds.
        takes_images: whether `model` does; None: as the provider says.
    """

    def __init__(
        self,
        *,
        provider_name: str,
        provider: Provider,
        key: Secret,
        number: int,
        model: str,
        base_url: str,
        clock: Callable[[], float],
        takes_images: bool | None = None,
    ) -> None:
        self.name = f"{provider.title} (Key #{number})" if provider.needs_key else provider.title
        self.provider_name = provider_name
        self.provider = provider
        self.key = key
        self.number = number
        self.model = model
        self.base_url = base_url
        self.enabled = True
        self.in_flight = 0
        self.total_requests = 0
        self.last_reason: str | None = None
        self.breaker = Breaker(clock)
        self.health = Health(clock)
        self.bad_keys_in_a_row = 0
        self._clock = clock
        self._takes_images = takes_images
        self._rate_limited_until_s = 0.0
        self._bad_key_until_s = 0.0

    def __repr__(self) -> str:
        return f"<Instance {self.name}>"

    def serves(self, model: str) -> bool:
        """Tell whether it is known to serve a model."""
        return model == self.model or any(m.id == model for m in self.provider.models)

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

    def park(self, seconds: float) -> None:
        """Leave it alone because of a rate limit; a park gets longer, never shorter."""
        self._rate_limited_until_s = max(self._rate_limited_until_s, self._clock() + seconds)

    def park_bad_key(self) -> None:
        """Leave it alone because its key was refused: 10 minutes, doubling up to an hour.

        Requests that were on their way when the first one was refused do not double it.
        """
        if self._bad_key_until_s > self._clock():
            return
        doublings = min(self.bad_keys_in_a_row, MOST_DOUBLINGS)
        seconds = min(BAD_KEY_PARK_S * 2**doublings, LONGEST_BAD_KEY_PARK_S)
        self.bad_keys_in_a_row += 1
        self._bad_key_until_s = self._clock() + seconds

    def good_key(self) -> None:
        """Note that the key works."""
        self.bad_keys_in_a_row = 0

    def parked_for_s(self) -> float:
        """Return how long it is still parked, 0 when it is not."""
        until_s = max(self._rate_limited_until_s, self._bad_key_until_s)
        return max(0.0, until_s - self._clock())

    def park_reason(self) -> str | None:
        """Return `bad_key`, `rate_limited`, or None."""
        now = self._clock()
        if self._bad_key_until_s > now:
            return "bad_key"
        return "rate_limited" if self._rate_limited_until_s > now else None

    def enable(self) -> None:
        """Switch it on, and give a parked key another chance; the circuit stays as it is."""
        self.enabled = True
        self._bad_key_until_s = 0.0
        self.bad_keys_in_a_row = 0

    def disable(self) -> None:
        """Switch it off: it gets nothing new."""
        self.enabled = False

    def available_in_s(self) -> float | None:
        """Return how long until it may be chosen: 0 now, None while it is switched off."""
        return max(self.parked_for_s(), self.breaker.ready_in_s()) if self.enabled else None
