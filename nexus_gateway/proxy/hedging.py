"""Hedging: if the first token is unusually late, ask a second instance; the first to answer wins.

As in "The Tail at Scale" (Dean and Barroso, 2013): a second request that is sent only after the
95th percentile of the usual time costs a few percent more and takes most of the tail away. Here it
also costs tokens, so the operator or the caller asks for it, only a healthy instance gets it, and
the loser is cancelled at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from nexus_gateway.errors import GatewayError
from nexus_gateway.provider import Outcome, Verdict
from nexus_gateway.proxy.context import Delivery
from nexus_gateway.routing.attempts import CANCELLED, Attempt, AttemptFailed
from nexus_gateway.routing.scheduler import Scheduler
from nexus_gateway.upstream.streams import AnswerStream

UNUSUAL = 0.95
_LACKING = Verdict(Outcome.CANCELLED, "this process lacks resources for two attempts at a time")
Open = Callable[[Delivery, Attempt], Coroutine[Any, Any, AnswerStream]]
RaiseRefusal = Callable[[Delivery, Attempt], None]


class HedgedAttempt:
    """An attempt at a stream, beside which a second one may run.

    Args:
        delivery: the request.
        scheduler: chooses the second instance.
        open: makes an attempt.
        raise_refusal: called after an attempt has failed; may raise to end the request.
        limits: how long a first token may take, in ms; how many attempts may be made.
    """

    def __init__(
        self,
        delivery: Delivery,
        scheduler: Scheduler,
        open: Open,
        raise_refusal: RaiseRefusal,
        limits: tuple[float, int],
    ) -> None:
        self._delivery = delivery
        self._scheduler = scheduler
        self._open = open
        self._raise_refusal = raise_refusal
        self._limit_ms, self._max_attempts = limits
        self._running: dict[asyncio.Task[AnswerStream], Attempt] = {}

    async def run(self, first: Attempt) -> tuple[Attempt, AnswerStream]:
        """Return the attempt that has its first content first, and its stream.

        Raises:
            AttemptFailed: none brought any; all of them have ended.
        """
        self._scheduler.hedges.request()
        self._start(first)
        winner: tuple[Attempt, AnswerStream] | None = None
        try:
            try:
                winner = await self._first(first)
            finally:
                await self._cancel_losers(is_decided=winner is not None)
        except BaseException:
            if winner is not None:  # the caller left while the loser was cancelled
                winner[0].end(CANCELLED)
                await winner[1].close()
            raise
        return winner

    async def _first(self, first: Attempt) -> tuple[Attempt, AnswerStream]:
        usual_ms = first.deployment.health.first_token_ms(UNUSUAL)
        timeout_s = None if usual_ms is None else usual_ms / 1000
        failed: AttemptFailed | None = None
        while self._running:
            done, _ = await asyncio.wait(
                self._running, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED
            )
            if not done:
                timeout_s = None
                self._start_hedge()
            for task in done:
                try:
                    return self._running[task], self._result(task)
                except AttemptFailed as error:
                    failed = error
        assert failed is not None
        raise failed

    def _start(self, attempt: Attempt) -> None:
        task = asyncio.ensure_future(self._open(self._delivery, attempt))
        self._running[task] = attempt

    def _start_hedge(self) -> None:
        delivery = self._delivery
        history = delivery.context.history
        if len(history.attempts) + len(history.running) < self._max_attempts:
            hedge = self._scheduler.hedge(delivery.target, delivery.options.policy, history)
            if hedge is not None:
                self._start(hedge)

    def _result(self, task: asyncio.Task[AnswerStream]) -> AnswerStream:
        """Return the stream of an attempt; if it failed, end it.

        Raises:
            AttemptFailed: it brought none.
            GatewayError: this ends the request.
        """
        attempt = self._running[task]
        error = task.exception()
        if isinstance(error, GatewayError) and len(self._running) > 1:
            # What this process lacks for two attempts it may have for one.
            del self._running[task]
            attempt.withdraw(_LACKING)
            raise AttemptFailed(_LACKING) from error
        if isinstance(error, AttemptFailed):
            del self._running[task]
            attempt.end(error.verdict)
            self._raise_refusal(self._delivery, attempt)
        stream = task.result()
        del self._running[task]
        return stream

    async def _cancel_losers(self, *, is_decided: bool) -> None:
        """End the attempts that still run, and one that answered in the same moment."""
        running, self._running = self._running, {}
        for task, attempt in running.items():
            task.cancel()
            if is_decided:
                attempt.lose(self._limit_ms)
            else:
                attempt.end(CANCELLED)
        try:
            await asyncio.gather(*running, return_exceptions=True)
        finally:  # also if the caller leaves in this moment
            for task in running:
                if task.done() and not task.cancelled() and task.exception() is None:
                    await task.result().close()
