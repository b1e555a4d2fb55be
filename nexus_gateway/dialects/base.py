"""What a dialect is: a request in its words, and the ways to answer it.

A request that a backend takes in its own form goes as it is, and so does the answer; the
dialect only watches (`EventFilter`) whether the answer has begun and has ended. Any other request
goes as a chat, and the answer's chunks are put into the dialect's words (`StreamEncoder`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Container, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol, Self

from nexus_gateway.dialects.body import Body
from nexus_gateway.errors import BrokenStream, InvalidRequest
from nexus_gateway.provider import CHAT
from nexus_gateway.wire import sse
from nexus_gateway.wire.chunks import Chunk


class InvalidAnswer(Exception):
    """A 2xx whose body is no answer; the text, in our words, says what it is."""


@dataclass(frozen=True, slots=True)
class FullResponse:
    """An answer in one piece.

    Args:
        body: as it goes to the caller.
        usage: what was used, in OpenAI's shape; empty when unknown.
        content_type: of the body.
    """

    body: bytes
    usage: Mapping[str, Any] = field(default_factory=dict)
    content_type: str = "application/json"


class EventFilter(Protocol):
    """Watches a stream that passes as it is.

    Attributes:
        started: content has been seen; what `feed` returns may go out.
        done: the answer is whole.
        broken: what ended the stream in the middle of a block, whose good part was passed.
    """

    started: bool
    done: bool
    broken: BrokenStream | None

    def feed(self, data: bytes) -> bytes:
        """Take what came; return what may go to the caller. BrokenStream if it is no answer."""

    def end(self) -> bytes:
        """Say that the body has ended; return what is still to be sent. TruncatedStream if cut."""

    def used(self) -> Mapping[str, Any]:
        """Return what was used so far, counted or estimated, in OpenAI's shape."""


class StreamEncoder(Protocol):
    """Tells one streamed answer, chunk by chunk, in the words of a dialect."""

    def encode(self, chunk: Chunk) -> bytes:
        """Return the events that tell a chunk, b"" for none."""

    def finish(self) -> bytes:
        """Return the events that end an answer that is whole."""


class Pieces:
    """A body that is sent piece by piece.

    Args:
        pieces: gives them, once.
        length: in bytes, None when unknown.
    """

    def __init__(self, pieces: AsyncIterator[bytes], length: int | None) -> None:
        self._pieces = pieces
        self.length = length

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self._pieces


class NativeBody(Protocol):
    """A request's body in its own dialect."""

    @property
    def content_type(self) -> str:
        """As a header says it."""

    @property
    def replayable(self) -> bool:
        """Whether it can be sent (once more)."""

    def encode(self, model: str) -> bytes | Pieces:
        """Return what to send, with the upstream's own name of the model."""


@dataclass(frozen=True)
class Request:
    """What a caller asked for.

    Args:
        dialect: in which words.
        model: the model asked for, None when absent.
        stream: whether the answer is streamed.
        own: the body as it came.
        chat: the same as a chat; None where it has no such form.
        images: whether it holds an image.
        obstacle: why it has no form as a chat, for the caller.
        headers: the caller's headers that go along with `own`.
        altered: whether `chat` says something else than `own`, which then may not go.
        trace: our headers with which an upstream can go on with a trace.
    """

    dialect: Dialect
    model: str | None
    stream: bool
    native: NativeBody = field(repr=False)
    chat: Body | None = field(default=None, repr=False)
    images: bool = False
    untranslatable: InvalidRequest | None = None
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    changed_by_hook: bool = False
    trace: Mapping[str, str] = field(default_factory=dict, repr=False)

    def can_pass_through(self, endpoints: Container[str]) -> bool:
        """Tell whether a backend takes it in its own form."""
        return not self.changed_by_hook and self.dialect.endpoint in endpoints

    def traced(self, trace: Mapping[str, str]) -> Self:
        """Return the same request with other headers for a trace."""
        # For every attempt that is traced; `replace` takes nine times as long.
        copied = object.__new__(type(self))
        copied.__dict__.update(self.__dict__, trace=trace)
        return copied

    @property
    def lacks_usage(self) -> bool:
        """Whether it is for a stream that could be asked for its usage, and does not ask."""
        body = self.chat or self.native
        may_ask = self.stream and self.dialect.has_stream_options
        return may_ask and isinstance(body, Body) and not body.asks_usage

    @property
    def has_own_stream_options(self) -> bool:
        """Whether its caller wrote some options of streams himself."""
        body = self.chat or self.native
        return isinstance(body, Body) and body.has_own_stream_options

    @property
    def replayable(self) -> bool:
        """Whether another attempt can be made."""
        return self.native.replayable


class Incoming(Protocol):
    """A request as the server has it."""

    @property
    def headers(self) -> Mapping[str, str]:
        """Its headers, case-insensitive."""

    async def body(self) -> bytes:
        """Read the whole body; GatewayError where it cannot be taken."""

    def pieces(self) -> AsyncIterator[bytes]:
        """Read the body piece by piece, bounded like `body`."""


class Dialect(ABC):
    """The words in which callers ask at one endpoint.

    Attributes:
        endpoint: the name by which a provider offers it in `endpoints`.
        kind: what its models are for, see `provider.Model`.
        id_header: a further header in which its clients look for the request's id.
        longest_answer: how large a whole answer may be, in bytes.
        stream_is_optional: whether some models answer whole though a stream is asked for.
        has_stream_options: whether a stream may be asked for its usage by OpenAI's
            `stream_options`.
    """

    endpoint: ClassVar[str]
    kind: ClassVar[str] = CHAT
    id_header: ClassVar[str] = ""
    longest_answer: ClassVar[int] = 16 * 1024 * 1024
    stream_is_optional: ClassVar[bool] = False
    has_stream_options: ClassVar[bool] = False

    async def read(self, incoming: Incoming) -> Request:
        """Read and check a request.

        Raises:
            GatewayError: it cannot be served; the message says what is wrong and where.
        """
        return self.parse(await incoming.body(), incoming.headers)

    @abstractmethod
    def parse(self, data: bytes, headers: Mapping[str, str]) -> Request:
        """Check a body; see `parse_event`."""

    @abstractmethod
    def parse_native(
        self, request: Request, body: bytes, content_type: str, label: str | None
    ) -> FullResponse:
        """Check an answer in this dialect; put the instance's name into it where it has a place.

        Args:
            request: what was asked.
            body: the answer as it came.
            content_type: of the answer.
            label: the instance's name, None to leave the upstream's word.

        Raises:
            NotAnAnswer: it is none.
        """

    def event_filter(self, request: Request, label: str | None) -> EventFilter:
        """Return a watch for a stream in this dialect; as `own_whole`."""
        raise NotImplementedError(f"{self.endpoint} has no stream")

    def encode_full(self, request: Request, completion: Chunk) -> Chunk:
        """Put a whole chat completion into this dialect's words."""
        raise NotImplementedError(f"{self.endpoint} is no chat")

    def stream_encoder(self, request: Request) -> StreamEncoder:
        """Return what tells a chat's chunks in this dialect's words."""
        raise NotImplementedError(f"{self.endpoint} is no chat")

    def error(self, status: int, body: dict[str, Any]) -> dict[str, Any]:
        """Put an error (OpenAI's envelope) into this dialect's words."""
        return body

    def error_event(self, status: int, body: dict[str, Any]) -> bytes:
        """Return the event that ends a stream with an error (OpenAI's envelope).

        Args:
            status: the HTTP status that it would have had; 500 for a stream that broke.
            body: the error.
        """
        return sse.json_event(self.error(status, body))
