"""Calls the hooks, each within its deadline; what they raise never reaches the caller."""

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
from nexus_gateway.proxy.context import RequestContext
from nexus_gateway.proxy.record import RequestRecord
from nexus_gateway.upstream.large import apart
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


CLOSE_S = 2.0
T = TypeVar("T")


class HookRunner:
    """The installed hooks, in their order.

    Attributes:
        moments: the names of the methods that each overrides.
    """

    def __init__(self, hooks: Mapping[str, Hook]) -> None:
        self.moments = {name: overridden(hook) for name, hook in hooks.items()}

        def overriding(method: str) -> list[tuple[str, Hook]]:
            return [(name, hook) for name, hook in hooks.items() if method in self.moments[name]]

        self._before_routing = overriding("before_routing")
        self._before_answer = overriding("before_answer")
        self._at_end = overriding("at_end")
        self._running: set[asyncio.Task[None]] = set()

    async def before_routing(self, hooked: HookRequest, request: Request) -> Request:
        """Call the hooks with a request; return it, or what they made of it.

        Raises:
            Rejected: a hook rejects it.
            HookFailed: a hook failed, and is not `fail_open`.
        """
        for name, hook in self._before_routing:
            check = partial(_with_body, request)
            call = partial(hook.before_routing, hooked)
            changed = await _call(name, hook, call, check, request.native.size)
            if changed is not None:
                request, hooked.body = changed
                hooked.model = request.model
        return request

    async def before_answer(
        self, hooked: HookRequest, head: HookResponse, response: FullResponse | None
    ) -> FullResponse | None:
        """Call the hooks with an answer; return the full response, or what they made of it.

        Raises:
            Rejected: a hook rejects it.
            HookFailed: a hook failed, and is not `fail_open`.
        """
        if response is not None and self._before_answer:
            head = replace(head, body=await apart(len(response.body), _json_of, response))
        for name, hook in self._before_answer:
            call = partial(hook.before_answer, hooked, head)
            size = 0 if response is None else len(response.body)
            changed = await _call(name, hook, call, partial(json_codec.dumps, size=size), size)
            if changed is not None and response is not None:
                response = replace(response, body=changed)
                head = replace(head, body=json_codec.loads(changed))
        return response

    def at_end(self, hooked: HookRequest, result: HookResult) -> None:
        """Call the hooks with the result of a request, in tasks of their own."""
        for name, hook in self._at_end:
            task = asyncio.create_task(_call_at_end(name, hook, hooked, result))
            self._running.add(task)
            task.add_done_callback(self._running.discard)

    async def close(self) -> None:
        """Let hooks that still run finish, for CLOSE_S at most."""
        if self._running:
            _, late = await asyncio.wait(self._running, timeout=CLOSE_S)
            for task in late:
                task.cancel()


async def _call_at_end(name: str, hook: Hook, hooked: HookRequest, result: HookResult) -> None:
    try:
        async with asyncio.timeout(hook.deadline_s):
            await hook.at_end(hooked, result)
    except BaseException:
        _raise_if_cancelled()
        logger.exception("the hook %s failed at the end of a request", name)


async def _call(
    name: str,
    hook: Hook,
    call: Callable[[], Awaitable[Any]],
    check: Callable[[Any], Any],
    size: int,
) -> Any:
    """Await a hook and check what it returns; None if it returns None, or failed and may.

    `size` is about that of what it may change, in bytes.
    """
    try:
        async with asyncio.timeout(hook.deadline_s):
            returned = await call()
        return None if returned is None else await apart(size, check, returned)
    except Rejected:
        raise
    except BaseException as error:
        _raise_if_cancelled()
        logger.exception("the hook %s failed", name)
        if hook.fail_open:
            return None
        raise HookFailed from error


def _raise_if_cancelled() -> None:
    """Raise CancelledError if the request was cancelled; everything else is the hook's failure.

    That includes SystemExit: a hook that calls `sys.exit` must not stop the gateway.
    """
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError


def _json_of(response: FullResponse) -> Any:
    """Return a response's JSON value, None if it has none."""
    try:
        return json_codec.loads(response.body) if "json" in response.content_type else None
    except json_codec.JSONError:
        return None


def _with_body(request: Request, fields: Any) -> tuple[Request, Mapping[str, Any]]:
    """Return a request with the body that a hook returned, as a chat if it has that form.

    Raises:
        TypeError, GatewayError: the body cannot be sent.
    """
    if not isinstance(fields, Mapping) or not isinstance(fields.get("model"), str | None):
        raise TypeError("before_routing returned something that is not a request body")
    model = fields.get("model") or request.model
    body = validated(Body(fields, request.stream or None, request.native.size), model)
    if request.chat is None:
        return replace(request, model=model, native=body), fields
    body = Body(fields, request.stream, request.native.size)
    images = check_messages(fields.get("messages"))
    if request.dialect.endpoint == CHAT:
        return replace(request, model=model, native=body, chat=body, images=images), fields
    return replace(request, model=model, chat=body, images=images, changed_by_hook=True), fields


class RequestHooks:
    """The hooks around one request."""

    def __init__(self, runner: HookRunner) -> None:
        self._runner = runner
        self._request: HookRequest | None = None

    async def before_routing(self, request: Request, id: str, caller: str) -> Request:
        """Call the hooks with a valid request; return it, or what they made of it."""
        native = request.native.fields if isinstance(request.native, Body) else None
        body = native if request.chat is None else request.chat.fields
        endpoint = request.dialect.endpoint
        facts = (id, endpoint, caller, request.model, request.stream)
        self._request = HookRequest(*facts, body=body, own=native)
        return await self._runner.before_routing(self._request, request)

    async def before_response(
        self, context: RequestContext, response: FullResponse | None
    ) -> FullResponse | None:
        """Call the hooks before the first byte is sent; None stands for a stream."""
        assert self._request is not None
        latest = context.history.latest
        assert latest is not None
        instance = latest.instance
        head = (instance.name, instance.provider_name, latest.model, context.history.begun)
        return await self._runner.before_answer(self._request, HookResponse(*head), response)

    def at_end(self, record: RequestRecord, usage: Mapping[str, Any]) -> None:
        """Call the hooks with the result; not for a request that was invalid."""
        if self._request is None:
            return
        result = HookResult(
            record.instance,
            record.provider,
            record.model,
            attempts=record.begun,
            status=record.status,
            outcome=record.outcome,
            usage=usage,
            first_ms=record.first_ms,
            total_ms=record.total_ms,
        )
        self._runner.at_end(self._request, result)
