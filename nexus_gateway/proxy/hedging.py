"""Hedging: who lets himself be waited for unusually long gets company; the first to speak wins.

The idea is that of "The Tail at Scale" (Dean and Barroso, 2013): a second request, sent only
after the 95th percentile of what is usual, costs a few percent more and takes most of the tail
away. Here a hedge costs tokens as well, so it is the owner's or the caller's choice, goes only to
somebody who is well, and the loser is cut off at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from nexus_gateway.errors import GatewayError
from nexus_gateway.provider import Outcome, Verdict
from nexus_gateway.proxy.context import RequestContext
from nexus_gateway.routing.lease import Lease
from nexus_gateway.routing.scheduler import Scheduler
from nexus_gateway.upstream.failures import AttemptFailed
from nexus_gateway.upstream.streams import AnswerStream

UNUSUAL = 0.95
_NOBODYS = Verdict(Outcome.CANCELLED, "somebody else was quicker")
_LACKING = Verdict(Outcome.CANCELLED, "not for two at a time")
Ask = Callable[[RequestContext, Lease], Coroutine[Any, Any, AnswerStream]]
Failed = Callable[[RequestContext, Lease, Verdict, float], None]


@dataclass(frozen=True, slots=True)
class Winner:
    """An answer that has begun: whose it is, and when it was asked for."""

    lease: Lease
    answer: AnswerStream
    begun_s: float


class HedgedAttempt:
    """One request's attempts at a stream, of which two may run at a time.

    Args:
        errand: the request.
        scheduler: gives the second lease, and the time.
        ask: makes an attempt.
        failed: told of an attempt that failed; may raise to end the request.
        limits: how long a first token may take, in ms; how many attempts there may be.
    """

    def __init__(
        self,
        errand: RequestContext,
        scheduler: Scheduler,
        ask: Ask,
        failed: Failed,
        limits: tuple[float, int],
    ) -> None:
        self._errand = errand
        self._scheduler = scheduler
        self._ask = ask
        self._failed = failed
        self._limit_ms, self._most_attempts = limits
        self._runners: dict[asyncio.Task[AnswerStream], tuple[Lease, float]] = {}

    async def run(self, lease: Lease) -> Winner | None:
        """Wait for the first content of one attempt, or of two.

        Args:
            lease: the first attempt's.

        Returns:
            The first that has any; None where all failed.
        """
        self._scheduler.hedges.request()
        self._start(lease)
        spoken: Winner | None = None
        try:
            try:
                spoken = await self._first(lease)
            finally:
                await self._cut_off(beaten=spoken is not None)
        except BaseException:
            if spoken is not None:  # the caller left while the loser was cut off
                spoken.lease.end(_NOBODYS)
                await spoken.answer.close()
            raise
        return spoken

    async def _first(self, lease: Lease) -> Winner | None:
        usual_ms = lease.instance.health.first_token_ms(UNUSUAL)
        patience_s = None if usual_ms is None else usual_ms / 1000
        spoken = None
        while self._runners and spoken is None:
            done, _ = await asyncio.wait(
                self._runners, timeout=patience_s, return_when=asyncio.FIRST_COMPLETED
            )
            if not done:
                patience_s = None
                self._send_company()
            for task in done:
                spoken = spoken or self._heard(task)
        return spoken

    def _start(self, lease: Lease) -> None:
        errand = self._errand
        errand.trail.running.append(lease.instance)
        errand.note_lease(lease)
        task = asyncio.ensure_future(self._ask(errand, lease))
        self._runners[task] = (lease, self._scheduler.clock())

    def _send_company(self) -> None:
        errand = self._errand
        if errand.trail.made < self._most_attempts:
            lease = self._scheduler.hedge(errand.target, errand.terms.policy, errand.trail)
            if lease is not None:
                errand.report.hedged = True
                self._start(lease)

    def _heard(self, task: asyncio.Task[AnswerStream]) -> Winner | None:
        """Take what became of an attempt; None where it failed."""
        lease, begun_s = self._runners[task]
        error = task.exception()
        spared = isinstance(error, GatewayError) and len(self._runners) > 1
        if not (spared or isinstance(error, AttemptFailed)):
            answer = task.result()
            del self._runners[task]
            self._errand.note_lease(lease)
            return Winner(lease, answer, begun_s)
        del self._runners[task]
        self._errand.trail.running.remove(lease.instance)
        if isinstance(error, AttemptFailed):
            self._failed(self._errand, lease, error.verdict, begun_s)
        else:  # what this process lacks for two it may have for one
            lease.end(_LACKING)
        return None

    async def _cut_off(self, *, beaten: bool) -> None:
        """End the attempts that still run, and one that spoke in the same moment."""
        runners, self._runners = self._runners, {}
        self._errand.trail.running.clear()
        for task, (lease, begun_s) in runners.items():
            task.cancel()
            if beaten:
                lease.overtaken((self._scheduler.clock() - begun_s) * 1000, self._limit_ms)
            lease.end(_NOBODYS)
        try:
            await asyncio.gather(*runners, return_exceptions=True)
        finally:  # also where the caller leaves in this moment
            for task in runners:
                if task.done() and not task.cancelled() and task.exception() is None:
                    await task.result().close()
