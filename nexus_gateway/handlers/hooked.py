"""One request as the hooks follow it, from its coming to its end."""

from __future__ import annotations

from nexus_gateway.dialects.body import Body
from nexus_gateway.dialects.dialect import Request, Whole
from nexus_gateway.errand import Report
from nexus_gateway.hook_chain import HookChain
from nexus_gateway.hooks import Answering, Exchange, Used


class Hooked:
    """The hooks' view of one request.

    Args:
        chain: the hooks.
    """

    def __init__(self, chain: HookChain) -> None:
        self._chain = chain
        self._exchange: Exchange | None = None

    async def begin(self, request: Request, id: str, caller: str) -> Request:
        """Let the hooks see a request that is in order; return it, or what they made of it."""
        own = request.own.fields if isinstance(request.own, Body) else None
        body = own if request.chat is None else request.chat.fields
        endpoint = request.dialect.endpoint
        about = (id, endpoint, caller, request.model, request.stream)
        self._exchange = Exchange(*about, body=body, own=own)
        return await self._chain.before_routing(self._exchange, request)

    async def look(self, report: Report, whole: Whole | None) -> Whole | None:
        """Let the hooks see an answer before its first byte goes out (a `sink.Look`)."""
        assert self._exchange is not None
        answering = Answering(*_who(report), report.attempts)
        return await self._chain.before_answer(self._exchange, answering, whole)

    def end(self, report: Report, status: int, took_ms: float) -> None:
        """Tell the hooks what became of it; nothing of a request that was not in order."""
        if self._exchange is None:
            return
        used = Used(
            *_who(report),
            attempts=report.attempts,
            status=status,
            outcome=report.outcome,
            usage=report.usage,
            first_ms=report.total_ms,
            total_ms=took_ms,
        )
        self._chain.at_end(self._exchange, used)


def _who(report: Report) -> tuple[str, str, str]:
    """Return the instance, its provider and the model of a report."""
    instance = report.instance
    return (instance.name, instance.provider_name, report.model) if instance else ("", "", "")
