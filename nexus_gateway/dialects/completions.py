"""OpenAI's older completions, of a `prompt`: the dialect of `POST /v1/completions`."""

from __future__ import annotations

from collections.abc import Mapping

from nexus_gateway.dialects.body import Body, optional, parse_object, refuse, sendable
from nexus_gateway.dialects.chat import completion
from nexus_gateway.dialects.dialect import Dialect, Request, Whole
from nexus_gateway.errors import InvalidRequest
from nexus_gateway.splice import Splice


class Completions(Dialect):
    """Completions go as they are, to backends that have them."""

    endpoint = "completions"
    kind = "completions"
    has_stream_options = True

    def parse(self, data: bytes, headers: Mapping[str, str]) -> Request:
        """Check what the gateway itself reads; every other field passes."""
        fields = parse_object(data)
        model = optional(fields, "model", str, "a string")
        stream = optional(fields, "stream", bool, "true or false") or False
        optional(fields, "stream_options", dict, "an object")
        prompt = fields.get("prompt")
        if prompt is None:
            raise InvalidRequest("The field `prompt` is missing.", param="prompt")
        if not isinstance(prompt, (str, list)):
            refuse("prompt", "a string or an array", prompt)
        return Request(self, model, stream, sendable(Body(fields, stream), model))

    def own_whole(
        self, request: Request, body: bytes, content_type: str, label: str | None
    ) -> Whole:
        """Check a completion and set its `model`."""
        return completion(body, label)

    def passage(self, request: Request, label: str | None) -> Splice:
        """Return the way through for a stream of chunks, as a chat's: only the texts differ."""
        return Splice(label, isinstance(request.own, Body) and request.own.asks_usage)


COMPLETIONS = Completions()
