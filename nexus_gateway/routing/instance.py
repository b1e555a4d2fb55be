"""One key of one provider, and its models: what is scheduled, measured, parked and toggled.

An `Instance` is a key: it is toggled, and parked if the key is refused. Providers count limits for
each model of a key, so a `Deployment`, one model of one instance, has the rest: rate limits,
quotas, circuit, latency. The scheduler chooses deployments.

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
from nexus_gateway.routing.affinity import seed_of
from nexus_gateway.routing.breaker import Breaker, State
from nexus_gateway.routing.health import Health, Sample
from nexus_gateway.routing.quotas import Quotas
from nexus_gateway.secret import Secret

LONG_PARK_S = 600.0
MAX_LONG_PARK_S = 3600.0
MAX_DOUBLINGS = 3  # three reach the longest park; an unlimited exponent would overflow
# On evidence that may be one request's alone: other requests soon find out.
SHORT_PARK_S = 5.0
# After this time a backend that refused `stream_options` is asked for usage again: it costs one
# request in ten minutes, and the refusal may have been for that request alone.
STREAM_USAGE_RETRY_S = 600.0
# Callers may name any model of a provider: so many have a state, then the oldest is forgotten.
MAX_NAMED_MODELS = 64
INSTANCE_MARKS = ("toggle", "freed", "bad_key")
MODEL_MARKS = ("rate_limited", "resting", "unknown_model", "circuit", "reason")
PARK_REASONS = ("bad_key", "unknown_model", "rate_limited", "resting")
Marks = Mapping[str, list[Any]]


@dataclass(frozen=True, slots=True)
class InstanceState:
    """What one process knows of an instance, or what all other processes know together."""

    marks: Marks = field(default_factory=dict)  # by their name in INSTANCE_MARKS
    total_requests: int = 0  # those of ended processes included
    in_flight: int = 0


@dataclass(frozen=True, slots=True)
class ModelState:
    """As `InstanceState`, for one model of it."""

    marks: Marks = field(default_factory=dict)  # by their name in MODEL_MARKS
    means: Mapping[str, Sample] = field(default_factory=dict)  # by their name in `health.MEANS`


def long_park_s(in_a_row: int) -> float:
    """Return how long a park lasts that only the operator or the provider can end."""
    return min(LONG_PARK_S * (1 << min(in_a_row, MAX_DOUBLINGS)), MAX_LONG_PARK_S)


@dataclass(eq=False, kw_only=True)
class Instance:
    """A provider with a key, and the models to ask for if the caller names none."""

    provider_name: str  # the entry point's name
    provider: Provider
    account: Account
    number: int  # as in NAME_KEY_3, or in NAME_BASE_URL_3 if the provider needs no key
    model: str  # the first of its models
    other_models: tuple[str, ...] = ()
    clock: InitVar[Callable[[], float]]  # monotonic seconds
    takes_images: InitVar[bool | None] = None  # of its models; None: as the provider lists them
    # How long a first token may take; None: FIRST_TOKEN_TIMEOUT_MS.
    first_token_timeout_ms: int | None = None
    tier: int = 1  # asked only if no instance of a lower tier may serve
    origin: str = ""  # the plugin's distribution and version

    def __post_init__(self, clock: Callable[[], float], takes_images: bool | None) -> None:
        self.name = self.provider.title
        if self.provider.needs_key:
            self.name += f" (Key #{self.number})"
        elif not self.provider.base_url and self.account.base_url:
            self.name += f" (URL #{self.number})"
        self.enabled = True
        self.in_flight = self.total_requests = self.bad_keys_in_a_row = 0
        self.bad_key_until_s = 0.0
        self.elsewhere = InstanceState()  # what the other processes know of it
        self.deployments: dict[str, Deployment] = {}  # by model
        self.warnings: set[str] = set()
        self._clock = clock
        self._takes_images = takes_images
        self._no_stream_usage_until_s = 0.0
        self._bad_key_at_s = self._key_accepted_at_s = 0.0
        self._suspected_by = ""  # the request whose refusal made the key suspicious
        self._is_key_doubtful = False
        self.freed_at_s = self._toggled_at_s = 0.0
        self.default = self.on(self.model)

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
    def models(self) -> tuple[str, ...]:
        return (self.model, *self.other_models)

    def on(self, model: str) -> Deployment:
        """Return its deployment of a model, with the state that is known."""
        deployment = self.deployments.get(model)
        if deployment is None:
            named = [m for m in self.deployments if m not in self.models]
            if len(named) >= MAX_NAMED_MODELS:
                del self.deployments[named[0]]
            deployment = self.deployments[model] = Deployment(self, model, self._clock)
        return deployment

    def own(self) -> list[Deployment]:
        """Return the deployments of the models to ask for if the caller names none."""
        return [self.on(model) for model in self.models]

    @property
    def leading(self) -> Deployment:
        """The first of its own deployments that is available; if none is, the first of all."""
        current = [deployment.current() for deployment in self.own()]
        return next((d for d in current if d.is_available), current[0])

    @property
    def health(self) -> Health:
        """The health of all its deployments together."""
        if len(self.deployments) == 1:
            return self.default.health
        return Health.merged(self._clock, [d.health for d in self.deployments.values()])

    def update_from(self, other: Instance) -> None:
        """Take over the settings (models, account, …) of another instance of the same key."""
        self.model, self.other_models, self.account = other.model, other.other_models, other.account
        self.first_token_timeout_ms, self.tier = other.first_token_timeout_ms, other.tier
        self.default = self.on(self.model)
        self._takes_images = other._takes_images
        self._no_stream_usage_until_s = 0.0

    def listed(self, kind: str) -> list[str]:
        return [m.id for m in self.provider.models if m.kind == kind]

    def serves(self, model: str, kind: str = CHAT) -> bool:
        listed = self.listed(kind)
        return model in listed or (model in self.models and (kind == CHAT or not listed))

    def deployments_for(self, kind: str) -> list[Deployment]:
        """Return what to ask if the caller names no model."""
        if kind == CHAT:
            return self.own()
        return [self.on(next(iter(self.listed(kind)), self.model))]

    def takes_images_with(self, model: str) -> bool:
        """Return whether a model takes images; an unlisted one if the caller named it."""
        if model in self.models and self._takes_images is not None:
            return self._takes_images
        for listed in self.provider.models:
            if listed.id == model:
                return listed.images
        return model not in self.models

    @property
    def asks_usage(self) -> bool:
        """Whether a stream may be asked for its usage by `stream_options`."""
        return self.provider.stream_usage and self._clock() >= self._no_stream_usage_until_s

    def disable_stream_usage(self) -> bool:
        """Ask for no usage for STREAM_USAGE_RETRY_S; return whether this is the first refusal."""
        first = not self._no_stream_usage_until_s
        self._no_stream_usage_until_s = self._clock() + STREAM_USAGE_RETRY_S
        return first

    def park_bad_key(self, *, is_doubtful: bool = False) -> None:
        """Exclude it because its key was refused: 10 minutes, doubling up to an hour.

        Requests that were in flight at the first refusal do not double it. If it is doubtful that
        the key is at fault, and not the requests, the instance is still the last resort.
        """
        now_s = self._clock()
        self._is_key_doubtful = is_doubtful and (
            self._is_key_doubtful or self.bad_key_until_s <= now_s
        )
        if self.bad_key_until_s > now_s + SHORT_PARK_S:
            return
        self._bad_key_at_s = now_s
        self.bad_key_until_s = now_s + long_park_s(self.bad_keys_in_a_row)
        self.bad_keys_in_a_row += 1

    def suspect_key(self, request_id: str) -> bool:
        """Exclude it for seconds, as a refusal may concern one request; at the second, for longer.

        A request's own repetitions are no further evidence. Returns whether it is for longer.
        """
        if self._suspected_by not in ("", request_id):
            self.park_bad_key(is_doubtful=True)
            return True
        self._suspected_by = request_id
        now_s = self._clock()
        if self.bad_key_until_s <= now_s:
            self._is_key_doubtful = True
            self._bad_key_at_s, self.bad_key_until_s = now_s, now_s + SHORT_PARK_S
        return False

    def withdraw_suspicion(self, request_id: str) -> None:
        """Take back what a request has caused, because other keys have refused it as well."""
        if self._suspected_by == request_id:
            self._suspected_by = ""
            if self.bad_key_until_s <= self._bad_key_at_s + SHORT_PARK_S:
                self.bad_key_until_s = 0.0

    @property
    def is_key_refused(self) -> bool:
        """Whether it is parked because its key was refused, beyond doubt."""
        return self.bad_key_until_s > self._clock() and not self._is_key_doubtful

    def accept_key(self, began_s: float) -> None:
        """Record that the key has worked for a request that began then."""
        self.bad_keys_in_a_row = 0
        self._suspected_by = ""
        if began_s > self._bad_key_at_s:
            self.bad_key_until_s = 0.0
            self._key_accepted_at_s = began_s

    def enable(self) -> None:
        """Switch it on, and unpark a refused key or model; circuits stay as they are."""
        self.enabled = True
        self._toggled_at_s = self._clock()
        self.unpark(self._toggled_at_s)

    def disable(self) -> None:
        self.enabled = False
        self._toggled_at_s = self._clock()

    def unpark(self, at_s: float | None = None) -> None:
        """Let a refused key or model be tried again, unless refused after a time (None: now)."""
        self.freed_at_s = at_s = self._clock() if at_s is None else at_s
        if self._bad_key_at_s <= at_s:
            self.bad_key_until_s = 0.0
            self.bad_keys_in_a_row = 0
            self._suspected_by = ""
        for deployment in self.deployments.values():
            deployment.unpark_model(at_s)

    def available_in_s(self) -> float | None:
        """Return how long until one of its own deployments may be chosen; None while it is off."""
        waits_s = [d.current().available_in_s() for d in self.own()] if self.enabled else []
        return min((wait_s for wait_s in waits_s if wait_s is not None), default=None)

    @property
    def is_available(self) -> bool:
        """Whether one of its own deployments is."""
        return self.leading.is_available

    def is_available_for(self, model: str) -> bool:
        """Whether a model is available here; one that was never asked for is, with a good key."""
        deployment = self.deployments.get(model)
        if deployment is not None:
            return deployment.is_available
        return self.enabled and self.bad_key_until_s <= self._clock()

    def export_state(self) -> InstanceState:
        """Return what this process knows of it, for the others; marks never set are left out."""
        marks: dict[str, list[Any]] = {
            "toggle": [self._toggled_at_s, self.enabled],
            "freed": [self.freed_at_s],
            "bad_key": [
                self.bad_key_until_s,
                self._bad_key_at_s,
                self.bad_keys_in_a_row,
                self._is_key_doubtful,
            ],
        }
        set_marks = {name: mark for name, mark in marks.items() if mark[0]}
        return InstanceState(set_marks, self.total_requests, self.in_flight)

    def merge_state(self, state: InstanceState) -> None:
        """Apply newer decisions and longer parks, and replace the figures, of all others."""
        marks = state.marks
        if (toggle := marks.get("toggle")) and toggle[0] > self._toggled_at_s:
            self._toggled_at_s, self.enabled = toggle[0], bool(toggle[1])
        if (freed := marks.get("freed")) and freed[0] > self.freed_at_s:
            self.unpark(freed[0])
        if bad_key := marks.get("bad_key"):
            until_s, at_s, in_a_row, is_doubtful = bad_key
            known_good_s = max(self.freed_at_s, self._key_accepted_at_s)
            if until_s > self.bad_key_until_s and at_s > known_good_s:
                self.bad_key_until_s, self._bad_key_at_s = until_s, at_s
                self._is_key_doubtful = bool(is_doubtful)
                self.bad_keys_in_a_row = max(self.bad_keys_in_a_row, in_a_row)
        self.elsewhere = state


class Deployment:
    """One model of one instance: what the scheduler chooses.

    Attributes:
        total_requests: this process's.
        max_output: the longest answer in tokens, as a refusal of the backend has named it; else 0.
        last_reason: why its last request failed; None if one has succeeded since.
        seed: a number of its own, the same in every process that has the key.
        steady_weight: what `policies.Smart` weighs it for conversations.
    """

    def __init__(self, instance: Instance, model: str, clock: Callable[[], float]) -> None:
        self.instance = instance
        self.model = model
        self.total_requests = self.max_output = 0
        account = instance.account
        self.seed = seed_of(instance.provider_name, account.key.reveal(), account.base_url, model)
        self.steady_weight = 1.0
        self.breaker = Breaker(clock)
        self.health = Health(clock)
        self.quotas = Quotas(clock)
        self._clock = clock
        self._rate_limited_until_s = self._resting_until_s = 0.0
        self.unknown_until_s = self._unknown_at_s = 0.0
        self._unknown_in_a_row = 0
        self._reason: str | None = None
        self._reason_at_s = 0.0

    def __repr__(self) -> str:
        return f"<Deployment {self.model} of {self.instance.name}>"

    @property
    def name(self) -> str:
        """The instance's name."""
        return self.instance.name

    @property
    def provider_name(self) -> str:
        return self.instance.provider_name

    @property
    def in_flight(self) -> int:
        """The instance's requests in flight, whatever their model."""
        return self.instance.in_flight

    @property
    def label(self) -> str:
        """Its name for explanations: with the model if its instance has several of its own."""
        models = self.instance.models
        is_one_of_several = len(models) > 1 and self.model in models
        return f"{self.name} {self.model}" if is_one_of_several else self.name

    @property
    def context(self) -> int:
        """The model's context window in tokens, 0 if unknown."""
        models = self.instance.provider.models
        return next((m.context for m in models if m.id == self.model), 0)

    @property
    def takes_images(self) -> bool:
        return self.instance.takes_images_with(self.model)

    @property
    def last_reason(self) -> str | None:
        return self._reason

    @last_reason.setter
    def last_reason(self, reason: str | None) -> None:
        if reason != self._reason:
            self._reason, self._reason_at_s = reason, self._clock()

    def current(self) -> Deployment:
        """Return itself, or the first successor of the provider's default model that is not gone.

        Only the provider's own default has successors: a model that the operator chose has none.
        """
        provider = self.instance.provider
        if not self.unknown_until_s or self.model != provider.default_model:
            return self
        candidates = [self, *map(self.instance.on, provider.successors)]
        return next((d for d in candidates if not d.is_unknown), self)

    @property
    def is_unknown(self) -> bool:
        """Whether it is parked because the provider does not serve the model with this key."""
        return self.unknown_until_s > self._clock()

    def quota_left(self) -> float | None:
        """Return the share left of its most exhausted rate limit, None if none is known."""
        return self.quotas.share_left(self.total_requests)

    def park(self, seconds: float) -> None:
        """Exclude it because of a rate limit; a park gets longer, never shorter."""
        self._rate_limited_until_s = max(self._rate_limited_until_s, self._clock() + seconds)

    def cool_down(self, seconds: float) -> float:
        """Exclude it because it failed with a Retry-After; as `park`, never shorter.

        Returns until when, by the clock, for `withdraw_rest`.
        """
        self._resting_until_s = max(self._resting_until_s, self._clock() + seconds)
        return self._resting_until_s

    def withdraw_rest(self, until_s: float) -> None:
        """Take a rest back, unless there was a longer one since."""
        if self._resting_until_s == until_s:
            self._resting_until_s = 0.0

    def park_unknown_model(self) -> None:
        """Exclude it because the provider does not serve the model with this key.

        For 10 minutes, doubling up to an hour; it is still the last resort.
        """
        now_s = self._clock()
        if self.unknown_until_s <= now_s:
            self._unknown_at_s = now_s
            self.unknown_until_s = now_s + long_park_s(self._unknown_in_a_row)
            self._unknown_in_a_row += 1

    def unpark_model(self, at_s: float) -> None:
        if self._unknown_at_s <= at_s:
            self.unknown_until_s = 0.0
            self._unknown_in_a_row = 0

    def accept_model(self) -> None:
        """Record that the provider serves the model with this key."""
        self._unknown_in_a_row = 0

    def parked_for_s(self) -> float:
        until_s = max(
            self._rate_limited_until_s,
            self._resting_until_s,
            self.unknown_until_s,
            self.instance.bad_key_until_s,
        )
        return max(0.0, until_s - self._clock())

    def park_reason(self) -> str | None:
        """Return one of PARK_REASONS, or None."""
        untils_s = (
            self.instance.bad_key_until_s,
            self.unknown_until_s,
            self._rate_limited_until_s,
            self._resting_until_s,
        )
        now_s = self._clock()
        parks = zip(PARK_REASONS, untils_s, strict=True)
        return next((reason for reason, until_s in parks if until_s > now_s), None)

    def available_in_s(self) -> float | None:
        """Return how long until it may be chosen: 0 now, None while its instance is off."""
        if not self.instance.enabled:
            return None
        return max(self.parked_for_s(), self.breaker.ready_in_s())

    @property
    def is_available(self) -> bool:
        """Whether it is enabled, not parked and its circuit closed; half open is not enough."""
        is_closed = self.breaker.state() is State.CLOSED
        return self.instance.enabled and is_closed and not self.parked_for_s()

    @property
    def is_last_resort(self) -> bool:
        """Whether only evidence that may concern other requests keeps it from being chosen."""
        instance, now_s = self.instance, self._clock()
        is_parked = max(self._rate_limited_until_s, self._resting_until_s) > now_s
        if is_parked or instance.is_key_refused or not instance.enabled:
            return False
        return self.breaker.admits() or self.breaker.is_doubtful

    def export_state(self) -> ModelState:
        """As `Instance.export_state`."""
        marks: dict[str, list[Any]] = {
            "rate_limited": [self._rate_limited_until_s],
            "resting": [self._resting_until_s],
            "unknown_model": [self.unknown_until_s, self._unknown_at_s, self._unknown_in_a_row],
            "circuit": [*self.breaker.last_change],
            "reason": [self._reason_at_s, self._reason or ""],
        }
        set_marks = {name: mark for name, mark in marks.items() if mark[0]}
        return ModelState(set_marks, self.health.local())

    def merge_state(self, state: ModelState) -> None:
        """As `Instance.merge_state`."""
        marks = state.marks
        if limited := marks.get("rate_limited"):
            self._rate_limited_until_s = max(self._rate_limited_until_s, limited[0])
        if resting := marks.get("resting"):
            self._resting_until_s = max(self._resting_until_s, resting[0])
        if unknown := marks.get("unknown_model"):
            until_s, at_s, in_a_row = unknown
            if until_s > self.unknown_until_s and at_s > self.instance.freed_at_s:
                self.unknown_until_s, self._unknown_at_s = until_s, at_s
                self._unknown_in_a_row = max(self._unknown_in_a_row, in_a_row)
        if circuit := marks.get("circuit"):
            at_s, opened, is_doubtful = circuit
            self.breaker.merge_remote((at_s, bool(opened), bool(is_doubtful)))
        if (reason := marks.get("reason")) and reason[0] > self._reason_at_s:
            self._reason_at_s, self._reason = reason[0], reason[1] or None
        self.health.merge_remote(state.means)
