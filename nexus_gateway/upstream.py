"""One attempt at one instance: sent, awaited up to its first content, its failure classified.

The only user of the HTTP client. Nothing here chooses an instance or knows of another attempt.
"""

from __future__ import annotations

import asyncio
import io
import logging
import secrets
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import aiohttp

from nexus_gateway import __version__, json_codec
from nexus_gateway.answer import Answer
from nexus_gateway.chat import ChatRequest
from nexus_gateway.classify import Outcome, Verdict, classify
from nexus_gateway.errors import BrokenStream
from nexus_gateway.instance import Instance
from nexus_gateway.provider import Call, HttpRequest, InProcess, Translator
from nexus_gateway.settings import Settings
from nexus_gateway.splice import Splice, set_model
from nexus_gateway.streams import AnswerStream, Chunked, PassThrough, events, release

logger = logging.getLogger("nexus_gateway")

CONNECT_TIMEOUT_S = 3.0
KEEP_CONNECTION_S = 30.0
READ_BUFFER = 256 * 1024
LARGE_BODY = 512 * 1024
LONGEST_ERROR = 64 * 1024
LONGEST_WHOLE = 16 * 1024 * 1024
# Some servers leave the type out, or call a stream plain text; HTML and JSON are never one.
_STREAM_TYPES = frozenset({"text/event-stream", "application/octet-stream", "text/plain"})


class AttemptFailed(Exception):
    """An attempt that brought no answer.

    Args:
        verdict: why, and what it means.
    """

    def __init__(self, verdict: Verdict) -> None:
        super().__init__(verdict.reason)
        self.verdict = verdict


@dataclass(frozen=True, slots=True)
class Whole:
    """An answer in one piece.

    Args:
        body: the JSON object as bytes.
        tokens: the completion's tokens, 0 when unknown.
    """

    body: bytes
    tokens: int


def _failure(reason: str) -> AttemptFailed:
    return AttemptFailed(Verdict(Outcome.FAILURE, reason))


@asynccontextmanager
async def client_session() -> AsyncIterator[aiohttp.ClientSession]:
    """Open the HTTP client that all attempts share.

    No limit on connections (a stream holds one for minutes), no total timeout (streams are
    bounded by silence, not by length), no cookies, no proxies from the environment.
    """
    connector = aiohttp.TCPConnector(
        limit=0, ttl_dns_cache=300, keepalive_timeout=KEEP_CONNECTION_S
    )
    async with aiohttp.ClientSession(
        connector=connector,
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT_S),
        cookie_jar=aiohttp.DummyCookieJar(),
        headers={"User-Agent": f"nexus-gateway/{__version__}", "Accept-Encoding": "identity"},
        read_bufsize=READ_BUFFER,
        trust_env=False,
    ) as session:
        yield session


class Upstream:
    """Make attempts.

    Args:
        session: the HTTP client.
        settings: the deadlines and what `model` shall say.
    """

    def __init__(self, session: aiohttp.ClientSession, settings: Settings) -> None:
        self._session = session
        self._first_token_s = settings.first_token_timeout_ms / 1000
        self._idle_s = settings.idle_timeout_ms / 1000
        self._names_instance = settings.response_model == "instance"

    async def stream(self, instance: Instance, model: str, request: ChatRequest) -> AnswerStream:
        """Attempt a streamed answer; returns when its first content is in hand.

        Raises:
            AttemptFailed: it brought none.
        """
        try:
            async with asyncio.timeout(self._first_token_s):
                return await self._stream(instance, model, request)
        except TimeoutError:
            limit_ms = round(self._first_token_s * 1000)
            raise _failure(f"no first token in {limit_ms} ms") from None

    async def whole(
        self, instance: Instance, model: str, request: ChatRequest, limit_s: float
    ) -> Whole:
        """Attempt an answer in one piece, within `limit_s`.

        Raises:
            AttemptFailed: it brought none.
        """
        try:
            async with asyncio.timeout(limit_s):
                if isinstance(instance.provider, (Translator, InProcess)):
                    return await self._folded(instance, model, request)
                return await self._object(instance, model, request)
        except TimeoutError:
            raise _failure(f"no answer in {round(limit_s * 1000)} ms") from None

    def _label(self, instance: Instance) -> str | None:
        return instance.name if self._names_instance else None

    async def _stream(self, instance: Instance, model: str, request: ChatRequest) -> AnswerStream:
        stream: PassThrough | Chunked
        if isinstance(instance.provider, (Translator, InProcess)):
            stream = await self._chunked(instance, model, request)
        else:
            response = await self._send(instance, self._plain(instance, model, request))
            await _expect_stream(response)
            splice = Splice(self._label(instance), request.usage_wanted)
            stream = PassThrough(response, splice, self._idle_s)
        try:
            await stream.open()
        except BrokenStream as broken:
            await stream.close()
            raise _failure(_reason(broken)) from broken
        except BaseException:
            await stream.close()
            raise
        return stream

    async def _folded(self, instance: Instance, model: str, request: ChatRequest) -> Whole:
        stream = await self.stream(instance, model, request)
        assert isinstance(stream, Chunked)
        try:
            return Whole(await stream.whole(), stream.tokens())
        except BrokenStream as broken:
            raise _failure(_reason(broken)) from broken
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            logger.exception("the chunks of %s make no answer", instance.provider_name)
            raise _failure("made chunks that are no answer") from error
        finally:
            await stream.close()

    async def _object(self, instance: Instance, model: str, request: ChatRequest) -> Whole:
        response = await self._send(instance, self._plain(instance, model, request))
        read = False
        try:
            body = await _read(response, LONGEST_WHOLE)
            read = len(body) < LONGEST_WHOLE
        finally:
            await release(response, whole=read)
        answer = _parse_answer(body)
        usage = answer.get("usage")
        tokens = usage.get("completion_tokens") if isinstance(usage, dict) else 0
        label = self._label(instance)
        label_json = None if label is None else json_codec.dumps(label)
        return Whole(set_model(body, label_json), tokens if isinstance(tokens, int) else 0)

    def _plain(self, instance: Instance, model: str, request: ChatRequest) -> HttpRequest:
        """Make the request for a backend that speaks OpenAI: the caller's own bytes."""
        headers = {
            "Content-Type": "application/json",
            "Accept": "text/event-stream" if request.stream else "application/json",
            **instance.provider.headers,
            **instance.provider.authorize(instance.key),
        }
        url = instance.base_url + "/chat/completions"
        return HttpRequest(url, request.encode(model), headers)

    async def _chunked(self, instance: Instance, model: str, request: ChatRequest) -> Chunked:
        provider = instance.provider
        call = Call(request.chat(model, stream=True), instance.key, instance.base_url)
        label = self._label(instance)
        answer = Answer(f"chatcmpl-{secrets.token_hex(12)}", int(time.time()), label or model)
        response = None
        try:
            if isinstance(provider, Translator):
                response = await self._send(instance, provider.encode(call))
                chunks = provider.stream(events(response), answer)
            else:
                assert isinstance(provider, InProcess)
                chunks = provider.generate(call, answer)
        except AttemptFailed:
            raise
        except Exception as error:
            logger.exception("the plugin %s failed on a request", instance.provider_name)
            raise _failure("the provider's plugin failed") from error
        return Chunked(chunks, label, request.usage_wanted, self._idle_s, response)

    async def _send(self, instance: Instance, http: HttpRequest) -> aiohttp.ClientResponse:
        """Send the request and wait for the answer's head; anything but 2xx is a failure."""
        try:
            # In one piece a large body would be copied, and block the loop, all at once.
            data = http.body if len(http.body) <= LARGE_BODY else io.BytesIO(http.body)
            response = await self._session.post(
                http.url, data=data, headers=http.headers, allow_redirects=False
            )
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise _failure(_connection_reason(error)) from error
        if 200 <= response.status < 300:
            return response
        try:
            body = await _read(response, LONGEST_ERROR)
        except AttemptFailed:
            body = b""
        finally:
            response.close()
        raise AttemptFailed(_judge(instance, response, body))


def _judge(instance: Instance, response: aiohttp.ClientResponse, body: bytes) -> Verdict:
    """Let the provider judge first, then the table."""
    try:
        verdict = instance.provider.read_failure(response.status, response.headers, body)
    except Exception:
        logger.exception("the plugin %s failed to read a failure", instance.provider_name)
        verdict = None
    return verdict or classify(response.status, response.headers, body, time.time())


async def _expect_stream(response: aiohttp.ClientResponse) -> None:
    if response.content_type not in _STREAM_TYPES:
        response.close()
        raise _failure("answered with something that is no stream")


async def _read(response: aiohttp.ClientResponse, limit: int) -> bytes:
    """Read a body up to a limit."""
    parts: list[bytes] = []
    size = 0
    try:
        while size < limit and (part := await response.content.readany()):
            parts.append(part)
            size += len(part)
    except (aiohttp.ClientError, OSError, ValueError) as error:
        raise _failure("cut its answer off") from error
    return b"".join(parts)[:limit]


def _parse_answer(body: bytes) -> dict[str, object]:
    """Check that a 200 is an answer at all."""
    try:
        answer = json_codec.loads(body)
    except json_codec.JSONError:
        raise _failure("answered with something that is not JSON") from None
    if not isinstance(answer, dict) or not isinstance(answer.get("choices"), list):
        raise _failure("answered 200 without an answer")
    if answer.get("error"):
        raise _failure("answered 200 with an error")
    return answer


def _reason(broken: BrokenStream) -> str:
    """Say for operators what broke; an upstream's own words are left out."""
    return {
        "TruncatedStream": "cut its answer off",
        "ErrorEvent": "sent an error instead of an answer",
        "IdleStream": "fell silent",
    }.get(type(broken).__name__, "sent something that is not an answer")


def _connection_reason(error: Exception) -> str:
    """Say what went wrong below HTTP, in our words: an exception's own may hold a URL."""
    kinds: list[tuple[type[Exception], str]] = [
        (aiohttp.ClientConnectorDNSError, "its host name was not found"),
        (aiohttp.ClientSSLError, "TLS failed"),
        (aiohttp.ConnectionTimeoutError, "could not be reached in time"),
        (aiohttp.ClientConnectorError, "refused the connection"),
        (aiohttp.ServerDisconnectedError, "closed the connection"),
        (aiohttp.ClientOSError, "reset the connection"),
        (aiohttp.InvalidURL, "its base URL is not valid"),
    ]
    return next((words for kind, words in kinds if isinstance(error, kind)), "broke HTTP's rules")
