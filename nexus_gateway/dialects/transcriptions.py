"""OpenAI's transcriptions of an audio file: `POST /v1/audio/transcriptions`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import Any

from nexus_gateway.dialects.base import Dialect, FullResponse, InvalidAnswer, Request
from nexus_gateway.dialects.chat import parse_answer, usage_in
from nexus_gateway.dialects.multipart import read_form
from nexus_gateway.errors import ErrorEvent
from nexus_gateway.wire.error_objects import normalise_error
from nexus_gateway.wire.passthrough import EventKind, EventPassthrough
from nexus_gateway.wire.usage import count

JSON = "application/json"
# The content types of the formats `text`, `srt` and `vtt`; markup would be some error page.
_TEXTS = frozenset({"text/plain", "text/vtt", "application/x-subrip"})


class TranscriptPassthrough(EventPassthrough):
    markers = (b"transcript.text.done", b'"error"')

    def _classify(self, event: dict[str, Any]) -> EventKind:
        if event.get("error"):
            raise ErrorEvent(normalise_error(event["error"]))
        if event.get("type") == "transcript.text.done":
            self.usage = dict(_to_chat_usage(usage_in(event))) or None
            return EventKind.END
        return EventKind.CONTENT if event.get("delta") or event.get("text") else EventKind.NOTHING


class Transcriptions(Dialect):
    """A form with a file, passed as it arrives to backends that offer transcriptions."""

    endpoint = "transcriptions"
    reads_pieces = True
    kind = "transcriptions"
    stream_is_optional = True

    async def read(self, pieces: AsyncIterator[bytes], headers: Mapping[str, str]) -> Request:
        """Read the fields before the file, without waiting for the file itself."""
        declared = headers.get("Content-Length", "")
        length = int(declared) if declared.isdigit() else None
        form = await read_form(headers.get("Content-Type", ""), pieces, length)
        stream = (form.value("stream") or "").lower() == "true"
        return Request(self, form.value("model"), stream, form)

    def parse_native(self, body: bytes, content_type: str, label: str | None) -> FullResponse:
        """Check a transcript; as text or subtitles it may be anything but markup."""
        if content_type != JSON:
            if "ml" in content_type:
                raise InvalidAnswer("answered with a web page")
            return FullResponse(body, {}, content_type if content_type in _TEXTS else "text/plain")
        answer = parse_answer(body, "text")
        if "text" not in answer:
            raise InvalidAnswer("answered 200 without an answer")
        return FullResponse(body, _to_chat_usage(usage_in(answer)))

    def passthrough(self, request: Request, label: str | None) -> TranscriptPassthrough:
        return TranscriptPassthrough()


def _to_chat_usage(usage: Mapping[str, Any]) -> Mapping[str, Any]:
    """Translate a transcript's usage into a chat's, if it counts tokens and not seconds."""
    if "input_tokens" not in usage:
        return usage
    prompt = count(usage["input_tokens"]) or 0
    completion = count(usage.get("output_tokens")) or 0
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
    }


TRANSCRIPTIONS = Transcriptions()
