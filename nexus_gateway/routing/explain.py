"""Why an instance was chosen, in one line: for the debug log and for `X-Nexus-Explain`.

    smart: Groq (Key #1) 92.5% of 2; Gemini (Key #1) 71.0%; excluded: Cerebras (Key #1) open 12s

The policy, the chosen instance and the number of candidates; then the other candidates, best score
first; then the excluded instances and why. A `Decision` is captured before the choice, because the
choice changes what is described.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Self

from nexus_gateway.routing.attempts import AttemptHistory
from nexus_gateway.routing.breaker import State
from nexus_gateway.routing.instance import Deployment
from nexus_gateway.routing.quotas import quota_factor

# In a large pool so many of each kind are named; the rest are counted.
MAX_NAMED = 8
_PARKS = {
    "bad_key": "key refused",
    "unknown_model": "model unknown",
    "rate_limited": "rate limited",
    "resting": "resting",
}


@dataclass(frozen=True, slots=True)
class Decision:
    """What a policy chose from: each candidate's state by name, best score first."""

    policy: str
    candidates: dict[str, str]
    excluded: list[str]

    @classmethod
    def capture(
        cls,
        policy: str,
        deployments: Sequence[Deployment],
        capable: Collection[Deployment],
        candidates: Collection[Deployment],
        history: AttemptHistory,
    ) -> Self:
        """Capture the state before a choice among `candidates`.

        `deployments` are all that the request's model may mean, `capable` those that are enabled
        and take what the request holds.
        """
        ranked = sorted(candidates, key=lambda i: -i.health.score())
        excluded = [i for i in deployments if i not in candidates]
        tier = min((i.instance.tier for i in candidates), default=0)
        return cls(
            policy,
            {i.label: _state(i) for i in ranked},
            [f"{i.label} {_exclusion(i, capable, history, tier)}" for i in excluded],
        )

    def chosen(self, name: str) -> str:
        """Describe a choice; an instance that was no candidate was probed early."""
        others = [f"{other} {state}" for other, state in self.candidates.items() if other != name]
        state = self.candidates.get(name)
        if state is None:
            first = f"{name} probed early, as no other instance is left"
        else:
            first = f"{name} {state} of {len(self.candidates)}"
        return self._line([first, *_shortened(others)])

    def none(self) -> str:
        return self._line(["no candidate"])

    def _line(self, parts: list[str]) -> str:
        if self.excluded:
            parts.append("excluded: " + ", ".join(_shortened(self.excluded)))
        return f"{self.policy}: " + "; ".join(parts)


def unavailable(
    policy: str,
    deployments: Sequence[Deployment],
    capable: Collection[Deployment],
    history: AttemptHistory,
) -> str:
    """Describe why no instance could be chosen; those that were tried are left out."""
    others = [i for i in deployments if not history.tried(i)]
    first = [] if history.attempts else [f"{policy}: no candidate"]
    excluded = _shortened([f"{i.label} {_exclusion(i, capable, history)}" for i in others])
    return "; ".join([*first, *([f"excluded: {', '.join(excluded)}"] if excluded else [])])


def _state(deployment: Deployment) -> str:
    """Return a candidate's score, and what lowers its chance."""
    notes = []
    if deployment.in_flight:
        notes.append(f"{deployment.in_flight} in flight")
    factor = quota_factor(deployment.quota_left())
    if factor < 1:
        notes.append(f"quota x{factor:.2f}")
    score = f"{deployment.health.score() * 100:.1f}%"
    return f"{score} ({', '.join(notes)})" if notes else score


def _exclusion(
    deployment: Deployment,
    capable: Collection[Deployment],
    history: AttemptHistory,
    tier: int = 0,
) -> str:
    """Return why it is no candidate; `tier` is the candidates', 0 if there are none."""
    if not deployment.instance.enabled:
        return "disabled"
    if deployment not in capable:
        return "takes no images"
    if history.tried(deployment):
        return _tried(deployment, history)
    if history.rules_out(deployment):
        return "would refuse it as well"
    reason, breaker = deployment.park_reason(), deployment.breaker
    if reason is not None:
        return f"{_PARKS[reason]} {_seconds(deployment.parked_for_s())}"
    if breaker.state() is State.OPEN:
        return f"open {_seconds(breaker.ready_in_s())}"
    if not breaker.admits():
        return "being probed"
    if 0 < tier < deployment.instance.tier:
        return f"tier {deployment.instance.tier}"
    if history.failures_of(deployment.provider_name):
        return "its provider failed"
    left = deployment.quota_left()
    return "rate limit used up" if left is not None and left <= 0 else "failed recently"


def _tried(deployment: Deployment, history: AttemptHistory) -> str:
    if any(attempt.deployment is deployment for attempt in history.running):
        return "being tried"
    reasons = [a.reason for a in history.attempts if a.deployment is deployment]
    return f"tried ({reasons[-1]})"


def _seconds(seconds: float) -> str:
    return f"{max(1, round(seconds))}s"


def _shortened(texts: list[str]) -> list[str]:
    more = len(texts) - MAX_NAMED
    return texts if more <= 0 else [*texts[:MAX_NAMED], f"and {more} more"]
