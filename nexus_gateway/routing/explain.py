"""Why an instance was chosen, in one line: for the debug log and for `X-Nexus-Explain`.

    smart: Groq (Key #1) 92.5% of 2; Gemini (Key #1) 71.0%; left out: Cerebras (Key #1) open 12s

First who was chosen, by which policy and of how many candidates; then the other candidates, the
best score first; then who was left out and why. A `Decision` is looked at before the choice, as the
choice itself changes what is looked at.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from nexus_gateway.routing.breaker import State
from nexus_gateway.routing.instance import Instance
from nexus_gateway.routing.lease import AttemptHistory
from nexus_gateway.routing.quotas import quota_factor

# In a large pool so many of each kind are named; the rest are counted.
MOST_NAMED = 8
_PARKS = {"bad_key": "key refused", "rate_limited": "rate limited", "resting": "resting"}


@dataclass(frozen=True, slots=True)
class Decision:
    """What there was to choose from.

    Args:
        policy: the way to route.
        candidates: each candidate's standing by its name, the best score first.
        left_out: who was none, and why.
    """

    policy: str
    candidates: dict[str, str]
    left_out: list[str]

    def chosen(self, name: str) -> str:
        """Tell of a choice, or of a probe before its time where it was none of the candidates."""
        others = [f"{other} {how}" for other, how in self.candidates.items() if other != name]
        how = self.candidates.get(name)
        if how is None:
            first = f"{name} probed early, as nobody else is left"
        else:
            first = f"{name} {how} of {len(self.candidates)}"
        return self._told([first, *_some(others)])

    def explain_unavailable(self) -> str:
        """Tell that nobody could be chosen."""
        return self._told(["nobody"])

    def _told(self, parts: list[str]) -> str:
        if self.left_out:
            parts.append("left out: " + ", ".join(_some(self.left_out)))
        return f"{self.policy}: " + "; ".join(parts)


def capture_decision(
    policy: str,
    instances: Sequence[Instance],
    able: Collection[Instance],
    candidates: Collection[Instance],
    trail: AttemptHistory,
) -> Decision:
    """Look at what there is to choose from.

    Args:
        policy: the way to route.
        instances: all that the request's model may mean.
        able: those of them that are enabled and take what the request holds.
        candidates: those of these among whom the policy chooses.
        trail: what was tried.
    """
    ranked = sorted(candidates, key=lambda i: -i.health.score())
    return Decision(
        policy,
        {i.name: _state(i) for i in ranked},
        [f"{i.name} {_exclusion(i, able, trail)}" for i in instances if i not in candidates],
    )


def explain_unavailable(
    policy: str, instances: Sequence[Instance], able: Collection[Instance], trail: AttemptHistory
) -> str:
    """Tell why nobody could be chosen: as a `Decision` does, but for whom the trail tells of.

    Args:
        policy: the way to route.
        instances: all that the request's model may mean.
        able: those of them that are enabled and take what the request holds.
        trail: what was tried.
    """
    others = [i for i in instances if not trail.tried(i)]
    first = [] if trail.attempts else [f"{policy}: nobody"]
    left_out = ", ".join(_some([f"{i.name} {_exclusion(i, able, trail)}" for i in others]))
    return "; ".join([*first, *([f"left out: {left_out}"] if left_out else [])])


def _state(instance: Instance) -> str:
    """Write a candidate's score, and what is held against it."""
    against = []
    if instance.in_flight:
        against.append(f"{instance.in_flight} in flight")
    share = quota_factor(instance.quota_left())
    if share < 1:
        against.append(f"quota x{share:.2f}")
    score = f"{instance.health.score() * 100:.1f}%"
    return f"{score} ({', '.join(against)})" if against else score


def _exclusion(instance: Instance, able: Collection[Instance], trail: AttemptHistory) -> str:
    """Say why an instance is not among the candidates."""
    if not instance.enabled:
        return "disabled"
    if instance not in able:
        return "takes no images"
    if trail.tried(instance):
        return _tried(instance, trail)
    reason, breaker = instance.park_reason(), instance.breaker
    if reason is not None:
        return f"{_PARKS[reason]} {_seconds(instance.parked_for_s())}"
    if breaker.state() is State.OPEN:
        return f"open {_seconds(breaker.ready_in_s())}"
    if not breaker.admits():
        return "being probed"
    if trail.failures_of(instance.provider_name):
        return "its provider failed"
    left = instance.quota_left()
    return "rate limit used up" if left is not None and left <= 0 else "failed of late"


def _tried(instance: Instance, trail: AttemptHistory) -> str:
    if instance in trail.running:
        return "being asked"
    reasons = [a.verdict.reason for a in trail.attempts if a.instance is instance]
    return f"tried ({reasons[-1]})"


def _seconds(seconds: float) -> str:
    return f"{max(1, round(seconds))}s"


def _some(texts: list[str]) -> list[str]:
    more = len(texts) - MOST_NAMED
    return texts if more <= 0 else [*texts[:MOST_NAMED], f"and {more} more"]
