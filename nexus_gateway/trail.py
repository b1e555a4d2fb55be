"""What was tried for one request, and how it went."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from nexus_gateway.classify import Outcome, Verdict
from nexus_gateway.instance import Instance


@dataclass(frozen=True, slots=True)
class Attempt:
    """One try that failed."""

    instance: Instance
    verdict: Verdict
    duration_ms: float


@dataclass(slots=True)
class Trail:
    """What was tried for one request.

    Attributes:
        attempts: those that failed.
        running: who is being asked now, where that is more than one.
        id: the request's, for the log.
        trace_id: its trace's, for the log; "" where that is not sampled.
        explanations: why each choice was made, where somebody wants to know it; else None.
    """

    attempts: list[Attempt] = field(default_factory=list)
    running: list[Instance] = field(default_factory=list)
    id: str = ""
    trace_id: str = ""
    explanations: list[str] | None = None
    _past: int = 0

    def named(self) -> dict[str, str | None]:
        """Return by which names the log's lines about the request go."""
        names: dict[str, str | None] = {"id": self.id or None}
        if self.trace_id:
            names["trace_id"] = self.trace_id
        return names

    @property
    def made(self) -> int:
        """How many attempts were begun."""
        return len(self.attempts) + len(self.running)

    @property
    def _present(self) -> list[Attempt]:
        past, present = self.attempts[: self._past], self.attempts[self._past :]
        return [a for a in past if a.verdict.outcome is Outcome.REFUSED] + present

    def turn_the_page(self) -> None:
        """Let by-gones be by-gones: after a wait whoever failed may do well.

        Whoever has refused will say the same.
        """
        self._past = len(self.attempts)

    def add(self, instance: Instance, verdict: Verdict, duration_ms: float) -> None:
        """Note a failed attempt."""
        self.attempts.append(Attempt(instance, verdict, duration_ms))

    def tried(self, instance: Instance) -> bool:
        """Tell whether an instance was tried, or is."""
        return instance in self.running or any(a.instance is instance for a in self._present)

    def last(self, instance: Instance) -> Outcome | None:
        """Return how an instance's last attempt ended, None when there was none."""
        found = (a.verdict.outcome for a in reversed(self._present) if a.instance is instance)
        return next(found, None)

    def troubled(self, provider_name: str) -> int:
        """Count a provider's failures; a bad key or a rate limit is its key's, not its own."""
        return sum(
            a.instance.provider_name == provider_name and a.verdict.outcome is Outcome.FAILURE
            for a in self._present
        )

    def story(self) -> str:
        """Tell what was tried and why it failed."""
        return story(self.attempts)


def story(attempts: Iterable[Attempt]) -> str:
    """Tell who was asked and why he failed."""
    return "; ".join(f"{a.instance.name}: {a.verdict.reason}" for a in attempts)
