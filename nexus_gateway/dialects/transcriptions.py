"""OpenAI's transcriptions, of an audio file: the dialect of `POST /v1/audio/transcriptions`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nexus_gateway.dialects.base import Dialect, FullResponse, Incoming, InvalidAnswer, Request
from nexus_gateway.dialects.chat import answered, usage_in
from nexus_gateway.dialects.multipart import read_form
from nexus_gateway.errors import ErrorEvent, UnsupportedMedia
from nexus_gateway.wire.error_objects import normalise_error
from nexus_gateway.wire.passthrough import EventKind, EventPassthrough

JSON = "application/json"
# What `text`, `srt` and `vtt` may be called; markup is a page about something else.
_TEXTS = frozenset({"text/plain", "text/vtt", "application/x-subrip"})


class TranscriptPassage(EventPassthrough):
    """Watches a transcript's events."""

    markers = (b"transcript.text.done", b'"error"')

    def _classify(self, value: dict[str, Any]) -> EventKind:
        if value.get("error"):
            raise ErrorEvent(normalise_error(value["error"]))
        if value.get("type") == "transcript.text.done":
            used = usage_in(value)
            self.usage = dict(_as_chat(used)) if used else None
            return EventKind.END
        return EventKind.CONTENT if value.get("delta") or value.get("text") else EventKind.NOTHING


class Transcriptions(Dialect):
    """A form with a file, passed on as it comes to backends that can listen."""

    endpoint = "transcriptions"
    kind = "transcriptions"
    stream_is_optional = True

    async def read(self, incoming: Incoming) -> Request:
        """Read the fields before the file; the file itself is not waited for."""
        headers = incoming.headers
        declared = headers.get("Content-Length", "")
        length = int(declared) if declared.isdigit() else None
        form = await read_form(headers.get("Content-Type", ""), incoming.pieces(), length)
        stream = (form.value("stream") or "").lower() == "true"
        return Request(self, form.value("model"), stream, form)

    def parse(self, data: bytes, headers: Mapping[str, str]) -> Request:
        """Refuse: a form is read, see `parse_event`."""
        raise UnsupportedMedia("Send the body as Content-Type: multipart/form-data.")

    def parse_native(
        self, request: Request, body: bytes, content_type: str, label: str | None
    ) -> FullResponse:
        """Check a transcript; as text or subtitles it may be anything but a page."""
        if content_type != JSON:
            if "ml" in content_type:
                raise InvalidAnswer("answered with a page")
            return FullResponse(body, {}, content_type if content_type in _TEXTS else "text/plain")
        answer = answered(body)
        if "text" not in answer:
            raise InvalidAnswer("answered 200 without an answer")
        return FullResponse(body, _as_chat(usage_in(answer)))

    def event_filter(self, request: Request, label: str | None) -> TranscriptPassage:
        """Watch a transcript's events."""
        return TranscriptPassage()


def _as_chat(used: Mapping[str, Any]) -> Mapping[str, Any]:
    """Put a transcript's usage into a chat's, where it counts tokens (and not seconds)."""
    if "input_tokens" not in used:
        return used
    prompt, completion = used["input_tokens"], used.get("output_tokens") or 0
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
    }


TRANSCRIPTIONS = Transcriptions()
