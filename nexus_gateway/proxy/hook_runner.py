"""Call the hooks, each within its deadline, and keep what they raise from the caller.

One request as the hooks follow it, from its coming to its end.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

from nexus_gateway.dialects.base import FullResponse, Request
from nexus_gateway.dialects.body import Body, validated
from nexus_gateway.dialects.chat import check_messages
from nexus_gateway.discovery import PluginKind, version_error
from nexus_gateway.errors import HookFailed
from nexus_gateway.hooks import Hook, HookRequest, HookResponse, HookResult, Rejected, overridden
from nexus_gateway.provider import CHAT
from nexus_gateway.proxy.record import RequestState
from nexus_gateway.wire import json_codec

logger = logging.getLogger("nexus_gateway")


def _contract_errors(cls: object) -> Iterator[str]:
    if not (isinstance(cls, type) and issubclass(cls, Hook)):
        yield "it is not a subclass of nexus_gateway.hooks.Hook"
        return
    yield from version_error(cls)
    if not isinstance(cls.deadline_s, (int, float)) or cls.deadline_s <= 0:
        yield "its `deadline_s` is not a number of seconds"


HOOKS: PluginKind[Hook] = PluginKind("hook", "nexus_gateway.hooks", _contract_errors)


LAST_WORDS_S = 2.0
T = TypeVar("T")


class HookRunner:
    """The hooks, in their order.

    Args:
        hooks: by name.

    Attributes:
        moments: the names of the methods that each overrides.
    """

    def __init__(self, hooks: Mapping[str, Hook]) -> None:
        def called_at(moment: str) -> list[tuple[str, Hook]]:
            return [(name, hook) for name, hook in hooks.items() if moment in overridden(hook)]

        self.moments = {name: overridden(hook) for name, hook in hooks.items()}
        self._at_request = called_at("before_routing")
        self._at_answer = called_at("before_answer")
        self._at_end = called_at("at_end")
        self._running: set[asyncio.Task[None]] = set()

    async def before_routing(self, exchange: HookRequest, request: Request) -> Request:
        """Let the hooks see a request; return it, or what they made of it.

        Raises:
            Refused: a hook refuses it.
            HookFailed: a hook failed that must not.
        """
        for name, hook in self._at_request:
            made = partial(_with_body, request)
            changed = await _called(name, hook, partial(hook.before_routing, exchange), made)
            if changed is not None:
                request, exchange.body = changed
                exchange.model = request.model
        return request

    async def before_answer(
        self, exchange: HookRequest, answering: HookResponse, whole: FullResponse | None
    ) -> FullResponse | None:
        """Let the hooks see an answer; return the whole one, or what they made of it.

        Raises:
            Refused: a hook refuses it.
            HookFailed: a hook failed that must not.
        """
        if whole is not None and self._at_answer:
            answering = replace(answering, body=_parsed(whole))
        for name, hook in self._at_answer:
            call = partial(hook.before_answer, exchange, answering)
            changed = await _called(name, hook, call, json_codec.dumps)
            if changed is not None and whole is not None:
                whole = replace(whole, body=changed)
                answering = replace(answering, body=json_codec.loads(changed))
        return whole

    def at_end(self, exchange: HookRequest, used: HookResult) -> None:
        """Tell the hooks what became of a request, without anybody waiting for them."""
        for name, hook in self._at_end:
            task = asyncio.create_task(_told_at_end(name, hook, exchange, used))
            self._running.add(task)
            task.add_done_callback(self._running.discard)

    async def close(self) -> None:
        """Let hooks that are still at an end finish, for a moment."""
        if self._running:
            _, late = await asyncio.wait(self._running, timeout=LAST_WORDS_S)
            for task in late:
                task.cancel()


async def _told_at_end(name: str, hook: Hook, exchange: HookRequest, used: HookResult) -> None:
    try:
        async with asyncio.timeout(hook.deadline_s):
            await hook.at_end(exchange, used)
    except BaseException:
        _pass_on_cancellation()
        logger.exception("the hook %s failed at the end of a request", name)


async def _called(
    name: str, hook: Hook, call: Callable[[], Awaitable[Any]], checked: Callable[[Any], Any]
) -> Any:
    """Await a hook, and check what it returns; None where it returns nothing, or failed openly."""
    try:
        async with asyncio.timeout(hook.deadline_s):
            returned = await call()
        return None if returned is None else checked(returned)
    except Rejected:
        raise
    except BaseException as error:
        _pass_on_cancellation()
        logger.exception("the hook %s failed", name)
        if hook.fail_open:
            return None
        raise HookFailed from error


def _pass_on_cancellation() -> None:
    """Raise again what came from outside; what a hook brought upon itself is its failure.

    Whatever that is: a hook that leaves by `sys.exit` must not take the gateway along.
    """
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError


def _parsed(whole: FullResponse) -> Any:
    """Return an answer's JSON value, None where it is none."""
    try:
        return json_codec.loads(whole.body) if "json" in whole.content_type else None
    except json_codec.JSONError:
        return None


def _with_body(request: Request, fields: Any) -> tuple[Request, Mapping[str, Any]]:
    """Return a request with a hook's body, which goes as a chat if the request has that form.

    Raises:
        TypeError, GatewayError: it is no body that could be sent.
    """
    if not isinstance(fields, Mapping) or not isinstance(fields.get("model"), str | None):
        raise TypeError("before_routing returned something that is no body")
    model = fields.get("model") or request.model
    body = validated(Body(fields, request.stream or None), model)
    if request.chat is None:
        return replace(request, model=model, native=body), fields
    body = Body(fields, request.stream)
    images = check_messages(fields.get("messages"))
    if request.dialect.endpoint == CHAT:
        return replace(request, model=model, native=body, chat=body, images=images), fields
    return replace(request, model=model, chat=body, images=images, changed_by_hook=True), fields


class RequestHooks:
    """The hooks' view of one request.

    Args:
        chain: the hooks.
    """

    def __init__(self, chain: HookRunner) -> None:
        self._chain = chain
        self._exchange: HookRequest | None = None

    async def begin(self, request: Request, id: str, caller: str) -> Request:
        """Let the hooks see a request that is in order; return it, or what they made of it."""
        own = request.native.fields if isinstance(request.native, Body) else None
        body = own if request.chat is None else request.chat.fields
        endpoint = request.dialect.endpoint
        about = (id, endpoint, caller, request.model, request.stream)
        self._exchange = HookRequest(*about, body=body, own=own)
        return await self._chain.before_routing(self._exchange, request)

    async def before_response(
        self, report: RequestState, whole: FullResponse | None
    ) -> FullResponse | None:
        """Let the hooks see an answer before its first byte goes out (a `sink.Look`)."""
        assert self._exchange is not None
        answering = HookResponse(*_who(report), report.attempts)
        return await self._chain.before_answer(self._exchange, answering, whole)

    def end(self, report: RequestState, status: int, took_ms: float) -> None:
        """Tell the hooks what became of it; nothing of a request that was not in order."""
        if self._exchange is None:
            return
        used = HookResult(
            *_who(report),
            attempts=report.attempts,
            status=status,
            outcome=report.outcome,
            usage=report.usage,
            first_ms=report.total_ms,
            total_ms=took_ms,
        )
        self._chain.at_end(self._exchange, used)


def _who(report: RequestState) -> tuple[str, str, str]:
    """Return the instance, its provider and the model of a report."""
    instance = report.instance
    return (instance.name, instance.provider_name, report.model) if instance else ("", "", "")
