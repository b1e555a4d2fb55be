"""What goes to an upstream: the HTTP request of one attempt, made by its provider's rules."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterable, Mapping
from types import TracebackType
from typing import Any

from nexus_gateway import json_codec
from nexus_gateway.classify import Outcome, Verdict, normalise_error
from nexus_gateway.dialects.body import Body
from nexus_gateway.dialects.dialect import CHAT, Pieces, Request
from nexus_gateway.errors import error_object
from nexus_gateway.instance import Instance
from nexus_gateway.provider import CannotServe, HttpRequest, Provider
from nexus_gateway.sending import AttemptFailed, failure

logger = logging.getLogger("nexus_gateway")

JSON = "application/json"


class plugin_at_work:  # noqa: N801 - it is used as a word
    """Turn what a plugin's code raises into a failed attempt; the traceback stays in the log.

    Args:
        instance: whose plugin is at work in the `with` block.
    """

    __slots__ = ("_instance",)

    def __init__(self, instance: Instance) -> None:
        self._instance = instance

    def __enter__(self) -> None:
        pass

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if isinstance(error, CannotServe):
            raise AttemptFailed(refusal(error)) from error
        if isinstance(error, Exception):
            logger.exception("the plugin %s failed on a request", self._instance.plugin)
            raise failure("the provider's plugin failed") from error


def refusal(error: CannotServe) -> Verdict:
    """Judge what a backend lacks: the caller's to know, and nobody's fault."""
    body = error_object(error.message, kind="invalid_request_error", param=error.param)
    return Verdict(Outcome.REFUSED, "cannot serve this", 400, error=normalise_error(body["error"]))


def blames_usage(verdict: Verdict) -> bool:
    """Tell whether a refusal may be for having asked for a stream's usage: it names the field."""
    said = str(verdict.error)
    return verdict.outcome is Outcome.REFUSED and (
        "stream_options" in said or "include_usage" in said
    )


def chat_of(request: Request, model: str, *, stream: bool, usage: bool = False) -> dict[str, Any]:
    """Return a request as a chat, with the upstream's name of the model."""
    assert request.chat is not None
    return request.chat.with_model(model, stream=stream, usage=usage)


def as_it_is(
    instance: Instance, model: str, request: Request, *, usage: bool = False
) -> HttpRequest:
    """Make the request for a backend that takes the caller's own dialect.

    Args:
        instance: who is asked.
        model: the upstream's name of it.
        request: what the caller asked.
        usage: ask for a stream's usage as well.
    """
    if request.dialect.endpoint == CHAT:
        return as_chat(instance, model, request, usage=usage)
    own = request.own
    body = own.encode(model, usage=True) if usage and isinstance(own, Body) else own.encode(model)
    more = {"Content-Type": request.own.content_type, **request.headers}
    if isinstance(body, Pieces) and body.length is not None:
        more["Content-Length"] = str(body.length)
    return _http(instance, model, request.dialect.endpoint, request.stream, body, more)


def as_chat(
    instance: Instance, model: str, request: Request, *, usage: bool = False
) -> HttpRequest:
    """Make the request for a backend that speaks OpenAI, as `as_it_is`; mended where it must be."""
    assert request.chat is not None
    provider = instance.provider
    body = request.chat.encode(model, usage=usage)
    if type(provider).prepare is not Provider.prepare:
        with plugin_at_work(instance):
            chat = chat_of(request, model, stream=request.stream, usage=usage)
            mended = provider.prepare(chat)
            if mended is not None and mended is not chat:
                body = json_codec.dumps(mended)
    return _http(instance, model, CHAT, request.stream, body, {"Content-Type": JSON})


def _http(
    instance: Instance,
    model: str,
    endpoint: str,
    stream: bool,
    body: bytes | AsyncIterable[bytes],
    more: Mapping[str, str],
) -> HttpRequest:
    provider = instance.provider
    with plugin_at_work(instance):
        headers = {
            "Accept": "text/event-stream" if stream else JSON,
            **provider.headers,
            **more,
            **provider.authorize(instance.key),
        }
        return HttpRequest(provider.url(instance.account, endpoint, model), body, headers)
