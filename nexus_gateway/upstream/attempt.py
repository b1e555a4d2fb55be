"""One attempt at one instance over HTTP: build the request, send it, wait for the first content.

If the backend takes the caller's own dialect, the bytes go there and back as they are. Else the
request goes as a chat, to an OpenAI-compatible backend or through a plugin's translation, and the
answer's chunks are encoded in the caller's dialect.
"""

from __future__ import annotations

import asyncio
import logging
import math
import secrets
import time
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterator, Mapping
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import aiohttp

from nexus_gateway.dialects.base import FullResponse, InvalidAnswer, Request, StreamEncoder
from nexus_gateway.dialects.body import Body
from nexus_gateway.dialects.chat import CHAT_COMPLETIONS, completed, usage_in
from nexus_gateway.dialects.multipart import Pieces, StreamedForm
from nexus_gateway.errors import BrokenStream, ErrorEvent, GatewayError, Overloaded, RequestTimeout
from nexus_gateway.provider import (
    CHAT,
    Call,
    CannotServe,
    HttpRequest,
    InProcess,
    Outcome,
    Provider,
    Scope,
    Translator,
    adapted,
)
from nexus_gateway.routing.attempts import AttemptFailed
from nexus_gateway.routing.breaker import State
from nexus_gateway.routing.instance import Deployment, Instance
from nexus_gateway.settings import Settings
from nexus_gateway.upstream.client import NO_HEADERS, Client, SentRequest, exhausted
from nexus_gateway.upstream.failures import (
    connection_reason,
    failure,
    judge,
    judge_error,
    plugin_errors,
    plugin_failed,
    refusal,
    rejects_stream_options,
)
from nexus_gateway.upstream.large import LARGE, apart, in_thread
from nexus_gateway.upstream.meanings import output_limit
from nexus_gateway.upstream.response import Fail, HttpResponse, Receive, read_up_to
from nexus_gateway.upstream.streams import (
    AnswerStream,
    Heartbeat,
    PassthroughStream,
    StreamLimits,
    TranslatedStream,
    chat_chunks,
    events,
)
from nexus_gateway.wire import json_codec
from nexus_gateway.wire.adaptations import restore_names, without_images
from nexus_gateway.wire.chunks import MALFORMED, Answer, Chunk, choices, is_empty

logger = logging.getLogger("nexus_gateway")

JSON = "application/json"
MAX_ERROR_BYTES = 64 * 1024
_NO_STREAM = CannotServe("This model does not stream; leave `stream` out.", "stream")
# Some servers omit the type, or call a stream plain text; HTML and JSON never are one.
STREAM_TYPES = frozenset({"text/event-stream", "application/octet-stream", "text/plain"})
# Before anything was sent: the request cannot be the cause.
_NOT_SENT = (aiohttp.ClientConnectorError, TimeoutError, aiohttp.InvalidURL)
Build = Callable[..., HttpRequest]
NO_NAMES: Mapping[str, str] = {}


class Upstream:
    """Makes attempts."""

    def __init__(self, client: Client, settings: Settings) -> None:
        self._client = client
        self._first_token_s = settings.first_token_timeout_ms / 1000
        self._idle_s = settings.idle_timeout_ms / 1000
        total_s = settings.stream_timeout_ms / 1000 or math.inf
        self.limits = StreamLimits(self._idle_s, total_s)
        self._response_s = settings.response_timeout_ms / 1000
        self._names_instance = settings.response_model == "instance"
        self._asks_usage = settings.stream_usage
        self._sent: SentRequest | None = None

    def continuing(self, sent: SentRequest) -> Upstream:
        """Return one that has sent the request of its first attempt already, by `send_at_once`."""
        upstream = copy(self)
        upstream._sent = sent
        upstream._client = self._client.continuing(sent)
        return upstream

    def send_at_once(
        self, deployment: Deployment, request: Request, receive: Receive, fail: Fail
    ) -> SentRequest | None:
        """Send what `stream` or `full` would; None if that needs a wait, or a translation.

        AttemptFailed if the provider's plugin fails. `receive` and `fail` as of the client.
        """
        instance = deployment.instance
        provider = instance.provider
        if provider.tool_names is not None or not request.can_pass_through(provider.endpoints):
            return None
        if deployment.max_output:
            request = request.limited(deployment.max_output)
        usage = self._asks_usage and instance.asks_usage and request.lacks_usage
        http = native_request(instance, deployment.model, request, usage=usage)
        return self._client.post_at_once(http, request.trace, receive, fail)

    def label_of(self, instance: Instance) -> str | None:
        """Return what replaces the answer's `model`; None keeps it."""
        return instance.name if self._names_instance else None

    async def stream(
        self,
        deployment: Deployment,
        request: Request,
        longest_s: float,
        *,
        may_give_up: bool = False,
    ) -> AnswerStream:
        """Return a stream once its first content has come; AttemptFailed if none comes.

        GatewayError if the caller's own body does not come to its end.

        Args:
            longest_s: how long that may take in any case.
            may_give_up: whether the instance's limit for a first token applies, because another
                one could be asked. The head of the response is a sign of life, and so is the role
                that a stream begins with: from then on the limit is IDLE_TIMEOUT_MS.
        """
        instance, sent = deployment.instance, self._sent
        limit_s = min(self.first_token_limit_s(instance), longest_s) if may_give_up else longest_s
        loop = asyncio.get_running_loop()
        began_s = loop.time() if sent is None else sent.sent_s
        overdue_s = None if sent is None else sent.until_s

        def on_life() -> None:
            if may_give_up and overdue_s is None:
                _extend(limit, min(loop.time() + self._idle_s, began_s + longest_s))

        stream: AnswerStream | None = None
        try:
            async with asyncio.timeout_at(overdue_s or began_s + limit_s) as limit:
                if isinstance(request.native, StreamedForm):
                    _restart_with_each_piece(deployment, request.native, limit, limit_s)
                label = self.label_of(instance)
                provider = instance.provider
                names = NO_NAMES if provider.tool_names is None else _renamed(provider, request)
                if request.can_pass_through(provider.endpoints) and not names:
                    response = await self._open(deployment, request, native_request)
                    on_life()
                    passthrough = request.dialect.passthrough(request, label)
                    stream = PassthroughStream(response, passthrough, self.limits)
                else:
                    stream = await self._translated(deployment, request, label, names)
                    if not isinstance(provider, InProcess):
                        on_life()
                await stream.open(on_life)
                return stream
        except BaseException as error:
            if stream is not None:
                await stream.close()
            if isinstance(error, TimeoutError):
                waited_ms = ((limit.when() or began_s) - began_s) * 1000
                reason = f"no first token in {round(waited_ms)} ms"
                raise _timeout_error(request, reason) from None
            if isinstance(error, BrokenStream | CannotServe):
                raise _broken(instance, error) from error
            raise

    async def full(self, deployment: Deployment, request: Request, limit_s: float) -> FullResponse:
        """Return an answer in one piece, within `limit_s`; raises as `stream`."""
        sent = self._sent
        began_s = asyncio.get_running_loop().time() if sent is None else sent.sent_s
        try:
            until_s = began_s + limit_s
            async with asyncio.timeout_at(until_s) as limit:
                if isinstance(request.native, StreamedForm):
                    _restart_with_each_piece(deployment, request.native, limit, limit_s)
                return await self._full(deployment, request)
        except TimeoutError:
            raise _timeout_error(request, f"no answer in {round(limit_s * 1000)} ms") from None
        except InvalidAnswer as error:
            raise failure(str(error)) from error
        except BrokenStream as broken:
            raise _broken(deployment.instance, broken) from broken

    def first_token_limit_s(self, instance: Instance) -> float:
        limit_ms = instance.first_token_timeout_ms
        return self._first_token_s if limit_ms is None else limit_ms / 1000

    async def _translated(
        self,
        deployment: Deployment,
        request: Request,
        label: str | None,
        names: Mapping[str, str],
    ) -> TranslatedStream:
        instance, heartbeat = deployment.instance, Heartbeat()
        shown = label or deployment.model
        response, chunks = await self._chunks(deployment, request, shown, heartbeat)
        encoder = request.dialect.stream_encoder(request)
        if names:
            encoder = _RestoringEncoder(encoder, names)
        return TranslatedStream(
            chunks, instance.plugin, label, encoder, self.limits, response, heartbeat
        )

    async def _chunks(
        self, deployment: Deployment, request: Request, shown: str, heartbeat: Heartbeat
    ) -> tuple[HttpResponse | None, AsyncIterator[Chunk]]:
        """Send a chat; return the answer's chunks and the response behind them, if any."""
        instance, model = deployment.instance, deployment.model
        provider = instance.provider
        if not isinstance(provider, Translator | InProcess):
            response = await self._open(deployment, request, chat_request)
            return response, chat_chunks(response, heartbeat)
        answer = Answer(f"chatcmpl-{secrets.token_hex(12)}", int(time.time()), shown)
        if isinstance(provider, InProcess):
            with plugin_errors(instance):
                return None, provider.generate(_call(instance, model, request), answer)
        if deployment.max_output:
            request = request.limited(deployment.max_output)
        size = request.native.size
        try:
            http = await apart(size, _encode, provider, instance, model, request)
            response = await send(self._client, deployment, http, request.trace)
        except AttemptFailed as failed:
            easier = _easier(deployment, request, failed)
            http = await apart(size, _encode, provider, instance, model, easier)
            response = await send(self._client, deployment, http, request.trace)
        try:
            with plugin_errors(instance):
                return response, provider.stream(events(response, heartbeat), answer)
        except BaseException:
            response.close()
            raise

    async def _open(
        self, deployment: Deployment, request: Request, build: Build, *, usage: bool = True
    ) -> HttpResponse:
        """Ask for a stream, and for its usage if only the caller does not ask for that."""
        instance = deployment.instance
        usage = usage and self._asks_usage and instance.asks_usage and request.lacks_usage
        if deployment.max_output:
            request = request.limited(deployment.max_output)
        built, size = partial(build, instance, deployment.model, usage=usage), request.native.size
        http = await in_thread(built, request) if size > LARGE else built(request)
        try:
            response = await send(self._client, deployment, http, request.trace)
        except AttemptFailed as failed:
            if usage and rejects_stream_options(failed.verdict):
                return await self._open_without_usage(deployment, request, build)
            http = await apart(size, built, _easier(deployment, request, failed))
            response = await send(self._client, deployment, http, request.trace)
        if response.content_type in STREAM_TYPES:
            return response
        response.close()
        if request.dialect.stream_is_optional and response.content_type == JSON:
            raise AttemptFailed(refusal(_NO_STREAM))
        raise failure("answered with something that is no stream")

    async def _open_without_usage(
        self, deployment: Deployment, request: Request, build: Build
    ) -> HttpResponse:
        """Ask again after a backend has refused `stream_options`.

        It is not asked for usage from then on, even if the second try fails: otherwise each stream
        would go on costing two requests.
        """
        try:
            response = await self._open(deployment, request, build, usage=False)
        except BaseException as error:
            # If that is refused too, the fault lies elsewhere, and the error quoted the field.
            refused = isinstance(error, AttemptFailed) and error.verdict.outcome is Outcome.REFUSED
            if not (refused or request.has_own_stream_options):
                _stop_asking_usage(deployment.instance)
            raise
        _stop_asking_usage(deployment.instance)
        return response

    async def _full(self, deployment: Deployment, request: Request) -> FullResponse:
        instance, model = deployment.instance, deployment.model
        dialect, label = request.dialect, self.label_of(instance)
        provider = instance.provider
        names = NO_NAMES if provider.tool_names is None else _renamed(provider, request)
        native = request.can_pass_through(provider.endpoints) and not names
        if not native and isinstance(provider, Translator | InProcess):
            return await self._fold(deployment, request, names)
        build: Build = native_request if native else chat_request
        if deployment.max_output:
            request = request.limited(deployment.max_output)
        built, size = partial(build, instance, model), request.native.size
        http = await in_thread(built, request) if size > LARGE else built(request)
        try:
            response = await send(self._client, deployment, http, request.trace)
        except AttemptFailed as failed:
            http = await apart(size, built, _easier(deployment, request, failed))
            response = await send(self._client, deployment, http, request.trace)
        limit = (dialect if native else CHAT_COMPLETIONS).longest_answer
        body = await read_full(response, limit)
        with _malformed_answers_fail():
            parse = dialect.parse_native if native else partial(_translate, request, names)
            if len(body) > LARGE:
                return await in_thread(parse, body, response.content_type, label)
            return parse(body, response.content_type, label)

    async def _fold(
        self, deployment: Deployment, request: Request, names: Mapping[str, str]
    ) -> FullResponse:
        """Stream a translated answer, and fold it into one object."""
        stream = await self.stream(deployment, request, self._response_s)
        assert isinstance(stream, TranslatedStream)
        try:
            with _malformed_answers_fail():
                return _encoded(request, await stream.fold(), stream.used(), names)
        finally:
            await stream.close()


def native_request(
    instance: Instance, model: str, request: Request, *, usage: bool = False
) -> HttpRequest:
    """Build the request for a backend that takes the caller's own dialect."""
    if request.dialect.endpoint == CHAT:
        return chat_request(instance, model, request, usage=usage)
    native = request.native
    if usage and isinstance(native, Body):
        body: bytes | Pieces = native.encode(model, usage=True)
    else:
        body = native.encode(model)
    headers = {"Content-Type": native.content_type, **request.headers}
    if isinstance(body, Pieces) and body.length is not None:
        headers["Content-Length"] = str(body.length)
    return _http(instance, model, request.dialect.endpoint, request.stream, body, headers)


def chat_request(
    instance: Instance, model: str, request: Request, *, usage: bool = False
) -> HttpRequest:
    """Build the request for an OpenAI-compatible backend, as its provider prepares it."""
    assert request.chat is not None
    provider = instance.provider
    body = request.chat.encode(model, usage=usage)
    translated = request.dialect.endpoint != CHAT
    prepares = type(provider).prepare is not Provider.prepare
    if prepares or translated or provider.all_adaptations or request.images:
        with plugin_errors(instance):
            chat = request.chat.with_model(model, stream=request.stream, usage=usage)
            prepared = adapted(provider, _shown(instance, request, chat), translated=translated)
            prepared = provider.prepare(prepared) or prepared
            if prepared is not chat:
                body = json_codec.dumps(prepared, request.chat.size)
    return _http(instance, model, CHAT, request.stream, body, {"Content-Type": JSON})


def _call(instance: Instance, model: str, request: Request) -> Call:
    """Build the call of a plugin that translates chats."""
    assert request.chat is not None
    chat = _shown(instance, request, request.chat.with_model(model, stream=True))
    translated = request.dialect.endpoint != CHAT
    return Call(adapted(instance.provider, chat, translated=translated), instance.account)


def _encode(provider: Translator, instance: Instance, model: str, request: Request) -> HttpRequest:
    with plugin_errors(instance):
        http = provider.encode(_call(instance, model, request))
        return replace(http, headers={**provider.headers, **http.headers})


def _easier(deployment: Deployment, request: Request, failed: AttemptFailed) -> Request:
    """Return a request without what a backend has refused of it; else raise the failure.

    A backend that names its longest answer gets no requests for longer ones any more.
    """
    error = failed.verdict.error
    if error is None or failed.verdict.outcome is not Outcome.REFUSED:
        raise failed
    limit = output_limit(error)
    easier = request.dialect.easier(request, error) if limit is None else request.limited(limit[0])
    if easier is None or easier is request:
        raise failed
    if limit is not None and limit.is_of_model:
        deployment.max_output = limit.tokens
        logger.info(
            "%s answers in at most %d tokens: requests for more are lowered",
            *(deployment.label, limit.tokens),
        )
    return easier


def _shown(instance: Instance, request: Request, chat: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a chat without its images if the model takes none.

    Only requests that may lose them are sent to such a model.
    """
    sees = not request.images or instance.takes_images_with(str(chat["model"]))
    return chat if sees else without_images(chat)


def _renamed(provider: Provider, request: Request) -> Mapping[str, str]:
    """Return the caller's name of each tool that a provider renames, by the new one."""
    endpoint, names = request.dialect.endpoint, provider.tool_names
    goes_as_it_is = endpoint != CHAT and request.can_pass_through(provider.endpoints)
    if names is None or request.chat is None or goes_as_it_is:
        return NO_NAMES
    return {new: old for old, new in names.renamed(request.chat.fields).items()}


def _http(
    instance: Instance,
    model: str,
    endpoint: str,
    stream: bool,
    body: bytes | AsyncIterable[bytes],
    headers: Mapping[str, str],
) -> HttpRequest:
    provider, account = instance.provider, instance.account
    try:
        all_headers = {
            "Accept": "text/event-stream" if stream else JSON,
            **provider.headers,
            **headers,
            **provider.authorize(account.key),
        }
        return HttpRequest(provider.url(account, endpoint, model), body, all_headers)
    except Exception as error:
        raise plugin_failed(instance, error) from error


async def send(
    client: Client,
    deployment: Deployment,
    http: HttpRequest,
    headers: Mapping[str, str] = NO_HEADERS,
) -> HttpResponse:
    """Send a request, with more headers of this attempt, and wait for the head of its response.

    AttemptFailed if the response is not 2xx, or none comes; GatewayError if the caller's own body
    cannot be read to its end, or if this process has no file descriptor left.
    """
    instance, requests_before = deployment.instance, deployment.total_requests
    try:
        response = await client.post(http, headers)
    except (aiohttp.ClientError, OSError, ValueError) as error:
        if isinstance(error.__cause__, GatewayError):
            raise error.__cause__ from error
        if exhausted(error):
            raise Overloaded from error
        raise failure(connection_reason(error), _scope_of(error)) from error
    except TypeError as error:
        logger.exception("the plugin %s made a request that cannot be sent", instance.plugin)
        raise failure("the provider's plugin failed") from error
    note_quotas(deployment, response.headers, requests_before)
    if 200 <= response.status < 300:
        return response
    try:
        body = await read_up_to(response, MAX_ERROR_BYTES)
    except (aiohttp.ClientError, OSError, ValueError):
        body = b""
    finally:
        response.close()
    raise AttemptFailed(judge(instance, response, body))


def note_quotas(deployment: Deployment, headers: Mapping[str, str], requests_before: int) -> None:
    """Note what a response says of its provider's limits."""
    instance = deployment.instance
    try:
        quotas = instance.provider.read_quotas(headers, time.time())
        if quotas:
            deployment.quotas.update(quotas, requests_before)
    except Exception:
        logger.exception("the plugin %s failed to read its quotas", instance.plugin)


def _scope_of(error: Exception) -> Scope:
    """Return what a failure below HTTP concerns: the address, unless the request was sent."""
    return Scope.ADDRESS if isinstance(error, _NOT_SENT) else Scope.REQUEST


async def read_full(response: HttpResponse, limit: int) -> bytes:
    """Read a full body of less than `limit` bytes, and return the connection to its pool."""
    is_complete = False
    try:
        body = await read_up_to(response, limit)
        is_complete = len(body) < limit
    except (aiohttp.ClientError, OSError, ValueError) as error:
        raise failure("cut its answer off") from error
    finally:
        await response.finish(whole=is_complete)
    if not is_complete:
        raise failure("sent too large an answer")
    return body


def _restart_with_each_piece(
    deployment: Deployment, form: StreamedForm, limit: asyncio.Timeout, limit_s: float
) -> None:
    """Let an attempt's time count from the last piece of the caller's body.

    A slow upload is no fault of the instance. A probe gets no more time, as it keeps all other
    requests away.
    """
    if deployment.breaker.state() is not State.HALF_OPEN:
        loop = asyncio.get_running_loop()
        form.on_piece = lambda: limit.reschedule(loop.time() + limit_s)


def _extend(limit: asyncio.Timeout, until_s: float) -> None:
    """Let an attempt last until then, if that is longer."""
    now_limit_s = limit.when()
    if now_limit_s is not None and until_s > now_limit_s:
        limit.reschedule(until_s)


def _stop_asking_usage(instance: Instance) -> None:
    if instance.disable_stream_usage():
        logger.warning(
            "%s refuses `stream_options`: its streams are not asked for their usage", instance.name
        )


def _timeout_error(request: Request, reason: str) -> Exception:
    form = request.native
    is_callers = isinstance(form, StreamedForm) and form.is_waiting_for_caller
    return RequestTimeout() if is_callers else failure(reason, Scope.TIME)


def _broken(instance: Instance, error: BrokenStream | CannotServe) -> AttemptFailed:
    """Return the failure of an answer that broke before its first content."""
    if isinstance(error, CannotServe):
        return AttemptFailed(refusal(error))
    if isinstance(error, ErrorEvent):
        return AttemptFailed(judge_error(instance, error.error))
    return failure(error.reason)


@dataclass(frozen=True, slots=True)
class _RestoringEncoder:
    """Encodes chunks with the caller's names of tools."""

    _encoder: StreamEncoder
    _names: Mapping[str, str]

    def encode(self, chunk: Chunk) -> bytes:
        return self._encoder.encode(dict(restore_names(chunk, self._names)))

    def finish(self) -> bytes:
        return self._encoder.finish()


def _translate(
    request: Request, names: Mapping[str, str], body: bytes, content_type: str, label: str | None
) -> FullResponse:
    """Return the answer of an OpenAI-compatible backend in the caller's dialect."""
    completion = completed(body)
    labelled = completion if label is None else {**completion, "model": label}
    return _encoded(request, labelled, usage_in(completion), names, len(body))


def _encoded(
    request: Request,
    completion: Chunk,
    usage: Mapping[str, Any],
    names: Mapping[str, str],
    size: int = 0,
) -> FullResponse:
    """Encode a full chat completion in the caller's dialect, with the caller's names of tools."""
    if names:
        completion = dict(restore_names(completion, names))
    body = json_codec.dumps(request.dialect.encode_full(request, completion), size)
    return FullResponse(body, usage, is_empty=all(map(is_empty, choices(completion))))


@contextmanager
def _malformed_answers_fail() -> Iterator[None]:
    try:
        yield
    except MALFORMED as error:
        raise failure("sent something that is not an answer") from error
