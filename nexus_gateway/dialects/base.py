"""What a dialect is: the format of one endpoint's requests and answers.

A request goes to a backend that offers the same endpoint unchanged, and so does its answer; the
dialect only checks it (`parse_native`, `passthrough`). For any other backend the request is
translated into a chat, and the chat's answer back (`encode_full`, `stream_encoder`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Container, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Protocol, Self

from nexus_gateway.dialects.body import Body
from nexus_gateway.dialects.multipart import StreamedForm
from nexus_gateway.errors import InvalidRequest
from nexus_gateway.provider import CHAT
from nexus_gateway.wire import sse
from nexus_gateway.wire.chunks import Chunk
from nexus_gateway.wire.passthrough import Passthrough

# The header of a count of tokens that is the gateway's estimate.
ESTIMATE = "X-Nexus-Estimate"


class InvalidAnswer(Exception):
    """A 2xx response whose body is not an answer; the text, which is ours, describes it."""


@dataclass(slots=True)
class FullResponse:
    """An answer that is not streamed, as it is sent to the caller."""

    body: bytes
    usage: Mapping[str, Any] = field(default_factory=dict)  # in OpenAI's shape; empty if unknown
    content_type: str = "application/json"
    is_empty: bool = False  # of words, calls and anything else
    headers: Mapping[str, str] = field(default_factory=dict)  # more of the caller's response


class StreamEncoder(Protocol):
    """Encodes one streamed answer, chunk by chunk, as the events of a dialect."""

    def encode(self, chunk: Chunk) -> bytes:
        """Return the events of a chunk, b"" for none."""

    def finish(self) -> bytes:
        """Return the events that end a complete answer."""


# Not frozen, as nothing is that every request makes: such a constructor takes four times as long.
@dataclass
class Request:
    """A parsed request: its body in the caller's dialect, and the same as a chat.

    If it cannot be translated, `chat` is None and `untranslatable` describes why, for the caller.
    """

    dialect: Dialect
    model: str | None
    stream: bool
    native: Body | StreamedForm = field(repr=False)
    chat: Body | None = field(default=None, repr=False)
    images: bool = False
    untranslatable: InvalidRequest | None = None
    # The caller's headers that are sent along with `native`.
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    # Whether a hook changed `chat`; `native` is then outdated and not sent.
    changed_by_hook: bool = False
    # Fields that the gateway serves itself: its answer has them, and they are not sent on.
    own: Mapping[str, Any] = field(default_factory=dict)
    # The gateway's own headers: `Via` after other proxies, and what continues a trace.
    trace: Mapping[str, str] = field(default_factory=dict, repr=False)
    # Whether all images are results of tools, so that a model that takes none may go on without.
    images_may_go: bool = False

    def can_pass_through(self, endpoints: Container[str]) -> bool:
        """Return whether a backend with these endpoints accepts `native`."""
        return not self.changed_by_hook and self.dialect.endpoint in endpoints

    def traced(self, trace: Mapping[str, str]) -> Self:
        # Called for every traced attempt; `dataclasses.replace` takes nine times as long.
        copied = object.__new__(type(self))
        copied.__dict__.update(self.__dict__, trace={**self.trace, **trace})
        return copied

    def limited(self, tokens: int) -> Self:
        """Return it for an answer of no more tokens; itself if it asks for no more."""
        native = self.native.limited(tokens) if isinstance(self.native, Body) else self.native
        chat = None if self.chat is None else self.chat.limited(tokens)
        is_same = native is self.native and chat is self.chat
        return self if is_same else replace(self, native=native, chat=chat)

    @property
    def lacks_usage(self) -> bool:
        """Whether it could ask its stream for the usage, and does not."""
        may_ask = self.stream and self.dialect.has_stream_options
        return may_ask and not (self.chat or self.native).asks_usage

    @property
    def has_own_stream_options(self) -> bool:
        return (self.chat or self.native).has_own_stream_options

    @property
    def replayable(self) -> bool:
        return self.native.replayable


class Dialect(ABC):
    """The format of one endpoint."""

    endpoint: ClassVar[str]  # its name in a provider's `endpoints`
    kind: ClassVar[str] = CHAT  # what its models are for, see `provider.Model`
    # Whether a body is read by `read`, and not as a whole by `parse`.
    reads_pieces: ClassVar[bool] = False
    # Another header in which its clients look for the request's id.
    id_header: ClassVar[str] = ""
    # The limit of an answer that is not streamed, in bytes.
    longest_answer: ClassVar[int] = 16 * 1024 * 1024
    # Whether a model may answer without a stream though one is requested.
    stream_is_optional: ClassVar[bool] = False
    # Whether a stream's usage can be requested by `stream_options`.
    has_stream_options: ClassVar[bool] = False

    def parse(self, data: bytes, headers: Mapping[str, str]) -> Request:
        """Check a body; GatewayError if it cannot be served."""
        raise NotImplementedError(f"{self.endpoint} reads its requests piece by piece")

    async def read(self, pieces: AsyncIterator[bytes], headers: Mapping[str, str]) -> Request:
        """Check a body while it arrives; GatewayError as `parse`."""
        raise NotImplementedError(f"{self.endpoint} parses whole requests")

    @abstractmethod
    def parse_native(self, body: bytes, content_type: str, label: str | None) -> FullResponse:
        """Check a backend's answer in this dialect; InvalidAnswer if it is none.

        `label`, the instance's name, replaces the answer's `model`; None keeps the upstream's.
        """

    def easier(self, request: Request, error: Mapping[str, Any]) -> Request | None:
        """Return a request without what a backend has refused, if the answer can make up for it.

        Args:
            request: in this dialect.
            error: the refusal, in OpenAI's shape.
        """
        return None

    def own_answer(self, request: Request) -> FullResponse | None:
        """Return what the gateway answers itself if no backend can serve a request, if anything."""
        return None

    def passthrough(self, request: Request, label: str | None) -> Passthrough:
        """Return what checks a backend's stream in this dialect; `label` as in `parse_native`."""
        raise NotImplementedError(f"{self.endpoint} has no streams")

    def encode_full(self, request: Request, completion: Chunk) -> Chunk:
        """Translate a chat completion into this dialect."""
        raise NotImplementedError(f"{self.endpoint} has no chats")

    def stream_encoder(self, request: Request) -> StreamEncoder:
        """Return what translates the chunks of a chat into this dialect."""
        raise NotImplementedError(f"{self.endpoint} has no chats")

    def error(self, status: int, body: dict[str, Any]) -> dict[str, Any]:
        """Translate an error (OpenAI's envelope) into this dialect."""
        return body

    def error_event(
        self, status: int, body: dict[str, Any], sent: Passthrough | StreamEncoder | None = None
    ) -> bytes:
        """Return the events that end a stream with an error; one that broke has status 500.

        `sent` is what made the events before, None if there are none.
        """
        return sse.json_event(self.error(status, body))
