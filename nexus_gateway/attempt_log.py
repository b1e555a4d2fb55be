"""What the log tells of attempts: of circuits that turn, and of what only the owner can mend."""

from __future__ import annotations

import logging

from nexus_gateway.classify import Outcome, Verdict
from nexus_gateway.lease import Lease
from nexus_gateway.trail import Trail

logger = logging.getLogger("nexus_gateway")


class AttemptLog:
    """Tells of attempts that have ended; of a circuit, in the process alone where it turned."""

    def __init__(self) -> None:
        self._said: set[str] = set()

    def ended(self, lease: Lease, verdict: Verdict, trail: Trail) -> None:
        """Tell what an attempt's end did to the circuit, and of a key that was refused.

        Args:
            lease: it has ended.
            verdict: how.
            trail: of its request.
        """
        name, turned = lease.instance.name, lease.turned
        if verdict.outcome is Outcome.BAD_KEY:
            self.once(f"{name} is parked: {verdict.reason}")
        if turned is None:
            return
        if not turned.opened:
            logger.info("circuit closed", extra={"fields": {**trail.named(), "on": name}})
            return
        fields = {
            **trail.named(),
            "on": name,
            "failures": turned.since_good,
            "probe_in_s": round(lease.instance.available_in_s() or 0),
            "why": verdict.reason,
        }
        logger.warning("circuit opened", extra={"fields": fields})

    def failed(self, lease: Lease, verdict: Verdict, trail: Trail) -> None:
        """Tell of an attempt that brought nothing."""
        fields = {**trail.named(), "on": lease.instance.name, "why": verdict.reason}
        logger.debug("attempt failed", extra={"fields": fields})
        self.ended(lease, verdict, trail)

    def once(self, warning: str) -> None:
        """Say loudly what only the owner can mend, but not with every request."""
        if warning not in self._said:
            self._said.add(warning)
            logger.warning("%s", warning)
