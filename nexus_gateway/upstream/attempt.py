"""One attempt at one instance: sent, awaited up to its first content, its failure classified.

Two ways lead to an answer. Where the backend takes the request in the caller's own dialect, the
bytes go there and back as they are. Else it goes as a chat, to an OpenAI-compatible backend or
through a plugin's translation, and the answer's chunks are told in the caller's dialect.

A request is sent, the answer's head awaited, every failure put in our words.

Nothing here chooses an instance or knows of another attempt.

What goes to an upstream: the HTTP request of one attempt, made by its provider's rules.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import aiohttp

from nexus_gateway.dialects.base import FullResponse, InvalidAnswer, Pieces, Request
from nexus_gateway.dialects.body import Body
from nexus_gateway.dialects.chat import CHAT_COMPLETIONS, completed, usage_in
from nexus_gateway.dialects.multipart import StreamedForm
from nexus_gateway.errors import BrokenStream, GatewayError, Overloaded, RequestTimeout
from nexus_gateway.provider import (
    CHAT,
    Call,
    CannotServe,
    HttpRequest,
    InProcess,
    Outcome,
    Provider,
    Translator,
)
from nexus_gateway.routing.breaker import State
from nexus_gateway.routing.instance import Instance
from nexus_gateway.settings import Settings
from nexus_gateway.upstream.client import NO_HEADERS, Client, exhausted
from nexus_gateway.upstream.failures import (
    AttemptFailed,
    _connection_reason,
    _judge,
    failure,
    plugin_errors,
    refusal,
    rejects_stream_options,
)
from nexus_gateway.upstream.response import HttpResponse, read_up_to
from nexus_gateway.upstream.streams import (
    AnswerStream,
    Heartbeat,
    PassthroughStream,
    TranslatedStream,
    chat_chunks,
    events,
)
from nexus_gateway.upstream.timeout import TimeLimit
from nexus_gateway.wire import json_codec
from nexus_gateway.wire.chunks import MALFORMED, Answer, Chunk

logger = logging.getLogger("nexus_gateway")

MAX_ERROR_BYTES = 64 * 1024


async def send(
    client: Client, instance: Instance, http: HttpRequest, more: Mapping[str, str] = NO_HEADERS
) -> HttpResponse:
    """Send a request, with more headers of this attempt's, and wait for the answer's head.

    Raises:
        AttemptFailed: anything but a 2xx came, or nothing.
        GatewayError: the caller's own body could not be read to its end, or this process has no
            file descriptor for it.
    """
    asked = instance.total_requests
    try:
        response = await client.post(http, more)
    except (aiohttp.ClientError, OSError, ValueError) as error:
        if isinstance(error.__cause__, GatewayError):
            raise error.__cause__ from error
        if exhausted(error):
            raise Overloaded from error
        raise failure(_connection_reason(error)) from error
    except TypeError as error:
        logger.exception("the plugin %s made a request that cannot be sent", instance.plugin)
        raise failure("the provider's plugin failed") from error
    _note_quotas(instance, response.headers, asked)
    if 200 <= response.status < 300:
        return response
    try:
        said = await read_up_to(response, MAX_ERROR_BYTES)
    except (aiohttp.ClientError, OSError, ValueError):
        said = b""
    finally:
        response.close()
    raise AttemptFailed(_judge(instance, response, said))


async def read_whole(response: HttpResponse, limit: int) -> bytes:
    """Read an answer in one piece, and give the connection back.

    Raises:
        AttemptFailed: it was cut off, or is larger than the limit in bytes.
    """
    read = False
    try:
        body = await read_up_to(response, limit)
        read = len(body) < limit
    except (aiohttp.ClientError, OSError, ValueError) as error:
        raise failure("cut its answer off") from error
    finally:
        await response.finish(whole=read)
    if not read:
        raise failure("sent too large an answer")
    return body


def _note_quotas(instance: Instance, headers: Mapping[str, str], asked: int) -> None:
    """Let the instance know what its upstream says of its rate limits."""
    try:
        instance.quotas.update(instance.provider.read_quotas(headers, time.time()), asked)
    except Exception:
        logger.exception("the plugin %s failed to read its quotas", instance.plugin)


JSON = "application/json"


def chat_of(request: Request, model: str, *, stream: bool, usage: bool = False) -> dict[str, Any]:
    """Return a request as a chat, with the upstream's name of the model."""
    assert request.chat is not None
    return request.chat.with_model(model, stream=stream, usage=usage)


def native_request(
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
        return chat_request(instance, model, request, usage=usage)
    own = request.native
    body = own.encode(model, usage=True) if usage and isinstance(own, Body) else own.encode(model)
    more = {"Content-Type": request.native.content_type, **request.headers}
    if isinstance(body, Pieces) and body.length is not None:
        more["Content-Length"] = str(body.length)
    return _http(instance, model, request.dialect.endpoint, request.stream, body, more)


def chat_request(
    instance: Instance, model: str, request: Request, *, usage: bool = False
) -> HttpRequest:
    """Make the request for a backend that speaks OpenAI, as `native_request`; mended where it must be."""
    assert request.chat is not None
    provider = instance.provider
    body = request.chat.encode(model, usage=usage)
    if type(provider).prepare is not Provider.prepare:
        with plugin_errors(instance):
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
    with plugin_errors(instance):
        headers = {
            "Accept": "text/event-stream" if stream else JSON,
            **provider.headers,
            **more,
            **provider.authorize(instance.key),
        }
        return HttpRequest(provider.url(instance.account, endpoint, model), body, headers)


_NO_STREAM = CannotServe("This model does not stream; leave `stream` out.", "stream")
# Some servers leave the type out, or call a stream plain text; HTML and JSON are never one.
_STREAM_TYPES = frozenset({"text/event-stream", "application/octet-stream", "text/plain"})


class Upstream:
    """Make attempts.

    Args:
        client: the HTTP client.
        settings: the deadlines and what `model` shall say.
    """

    def __init__(self, client: Client, settings: Settings) -> None:
        self._client = client
        self._first_token_s = settings.first_token_timeout_ms / 1000
        self._idle_s = settings.idle_timeout_ms / 1000
        self._names_instance = settings.response_model == "instance"
        self._asks_usage = settings.stream_usage

    async def stream(self, instance: Instance, model: str, request: Request) -> AnswerStream:
        """Attempt a streamed answer; returns when its first content is in hand.

        Raises:
            AttemptFailed: it brought none.
            GatewayError: the caller's own body did not come to its end.
        """
        try:
            with TimeLimit(self._first_token_s) as limit:
                _restart_with_each_piece(instance, request, limit)
                return await self._stream(instance, model, request)
        except TimeoutError:
            limit_ms = round(self._first_token_s * 1000)
            raise _timeout_error(request, f"no first token in {limit_ms} ms") from None

    async def whole(
        self, instance: Instance, model: str, request: Request, limit_s: float
    ) -> FullResponse:
        """Attempt an answer in one piece, within `limit_s`.

        Raises:
            AttemptFailed: it brought none.
            GatewayError: the caller's own body did not come to its end.
        """
        try:
            with TimeLimit(limit_s) as limit:
                _restart_with_each_piece(instance, request, limit)
                return await self._whole(instance, model, request)
        except TimeoutError:
            raise _timeout_error(request, f"no answer in {round(limit_s * 1000)} ms") from None
        except InvalidAnswer as error:
            raise failure(str(error)) from error

    def _label(self, instance: Instance) -> str | None:
        return instance.name if self._names_instance else None

    async def _stream(self, instance: Instance, model: str, request: Request) -> AnswerStream:
        stream: PassthroughStream | TranslatedStream
        if request.can_pass_through(instance.provider.endpoints):
            response = await self._open_with_usage(instance, model, request, native_request)
            passage = request.dialect.event_filter(request, self._label(instance))
            stream = PassthroughStream(response, passage, self._idle_s)
        else:
            stream = await self._translated(instance, model, request)
        try:
            await stream.open()
        except BrokenStream as broken:
            await stream.close()
            raise failure(broken.reason) from broken
        except CannotServe as error:
            await stream.close()
            raise AttemptFailed(refusal(error)) from error
        except BaseException:
            await stream.close()
            raise
        return stream

    async def _whole(self, instance: Instance, model: str, request: Request) -> FullResponse:
        dialect = request.dialect
        label = self._label(instance)
        if request.can_pass_through(instance.provider.endpoints):
            response = await self._send(instance, native_request(instance, model, request), request)
            body = await read_whole(response, dialect.longest_answer)
            with _malformed_answers_fail():
                return dialect.parse_native(request, body, response.content_type, label)
        if isinstance(instance.provider, (Translator, InProcess)):
            return await self._fold(instance, model, request)
        response = await self._send(instance, chat_request(instance, model, request), request)
        body = await read_whole(response, CHAT_COMPLETIONS.longest_answer)
        with _malformed_answers_fail():
            completion = completed(body)
            labelled = completion if label is None else {**completion, "model": label}
            return _full_response(request, labelled, usage_in(completion))

    async def _fold(self, instance: Instance, model: str, request: Request) -> FullResponse:
        stream = await self.stream(instance, model, request)
        assert isinstance(stream, TranslatedStream)
        try:
            with _malformed_answers_fail():
                return _full_response(request, await stream.fold(), stream.used())
        except BrokenStream as broken:
            raise failure(broken.reason) from broken
        finally:
            await stream.close()

    async def _translated(
        self, instance: Instance, model: str, request: Request
    ) -> TranslatedStream:
        label, pulse = self._label(instance), Heartbeat()
        response, chunks = await self._chunks(instance, model, request, label or model, pulse)
        speaker = request.dialect.stream_encoder(request)
        return TranslatedStream(
            chunks, instance.plugin, label, speaker, self._idle_s, response, pulse
        )

    async def _chunks(
        self, instance: Instance, model: str, request: Request, shown: str, pulse: Heartbeat
    ) -> tuple[HttpResponse | None, AsyncIterator[Chunk]]:
        """Ask for a chat; return the answer's chunks and the response behind them, if any."""
        provider = instance.provider
        if not isinstance(provider, (Translator, InProcess)):
            response = await self._open_with_usage(instance, model, request, chat_request)
            return response, chat_chunks(response, pulse)
        answer = Answer(f"chatcmpl-{secrets.token_hex(12)}", int(time.time()), shown)
        call = Call(chat_of(request, model, stream=True), instance.account)
        with plugin_errors(instance):
            if isinstance(provider, InProcess):
                return None, provider.generate(call, answer)
            http = provider.encode(call)
            http = replace(http, headers={**provider.headers, **http.headers})
        response = await self._send(instance, http, request)
        try:
            with plugin_errors(instance):
                return response, provider.stream(events(response, pulse), answer)
        except BaseException:
            response.close()
            raise

    def _send(
        self, instance: Instance, http: HttpRequest, request: Request
    ) -> Awaitable[HttpResponse]:
        return send(self._client, instance, http, request.trace)

    async def _open_with_usage(
        self, instance: Instance, model: str, request: Request, make: Callable[..., HttpRequest]
    ) -> HttpResponse:
        """Ask for a stream, and for its usage where only the caller does not ask for that.

        A backend that finds fault with what the caller has not said is asked once more without,
        and from then on not asked so: also where it is then too late or too busy to answer, as
        else each stream would go on costing two requests.
        """
        usage = self._asks_usage and instance.asks_usage and request.lacks_usage
        http = make(instance, model, request, usage=usage)
        try:
            return await self._open_stream(instance, http, request)
        except AttemptFailed as failed:
            if not (usage and rejects_stream_options(failed.verdict)):
                raise
        only_ours = not request.has_own_stream_options
        try:
            response = await self._open_stream(instance, make(instance, model, request), request)
        except BaseException as error:
            # Who refuses that too finds fault with the rest, and quoted the field along with it.
            refused = isinstance(error, AttemptFailed) and error.verdict.outcome is Outcome.REFUSED
            if only_ours and not refused:
                _stop_asking_usage(instance)
            raise
        _stop_asking_usage(instance)
        return response

    async def _open_stream(
        self, instance: Instance, http: HttpRequest, request: Request
    ) -> HttpResponse:
        response = await self._send(instance, http, request)
        if response.content_type in _STREAM_TYPES:
            return response
        response.close()
        if request.dialect.stream_is_optional and response.content_type == JSON:
            raise AttemptFailed(refusal(_NO_STREAM))
        raise failure("answered with something that is no stream")


def _restart_with_each_piece(instance: Instance, request: Request, limit: TimeLimit) -> None:
    """Let an attempt's time count from when the caller's body was there.

    An upload may take long, and that is nobody's fault. But a probe keeps all others away, so it
    gets no more time than any.
    """
    own = request.native
    if not isinstance(own, StreamedForm) or instance.breaker.state() is State.HALF_OPEN:
        return
    own.on_piece = limit.restart


def _stop_asking_usage(instance: Instance) -> None:
    if instance.disable_stream_usage():
        logger.warning(
            "%s refuses `stream_options`: its streams are not asked for their usage", instance.name
        )


def _timeout_error(request: Request, reason: str) -> Exception:
    """Say whose fault it is that the time is up."""
    waits = isinstance(request.native, StreamedForm) and request.native.is_waiting_for_caller
    return RequestTimeout() if waits else failure(reason)


def _full_response(request: Request, completion: Chunk, usage: Mapping[str, Any]) -> FullResponse:
    """Put a whole chat completion into the caller's dialect."""
    return FullResponse(json_codec.dumps(request.dialect.encode_full(request, completion)), usage)


@contextmanager
def _malformed_answers_fail() -> Iterator[None]:
    """Turn what an answer of an unheard-of shape raises into a failed attempt."""
    try:
        yield
    except MALFORMED as error:
        raise failure("sent something that is not an answer") from error
