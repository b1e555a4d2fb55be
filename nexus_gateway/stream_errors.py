"""How an answer may break after its first token, as one tree.

BrokenStream                 an answer died after its first token
├── TruncatedStream          it ended without finish_reason and [DONE]
├── IdleStream               it said nothing for too long
└── ErrorEvent               it carried an error object
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nexus_gateway.errors import error_object


class BrokenStream(Exception):
    """An answer that cannot be finished; the text is fit for the caller."""

    code = "upstream_stream_error"

    def body(self) -> dict[str, Any]:
        """Return the error object that ends the stream."""
        return error_object(str(self), kind="server_error", code=self.code)


class TruncatedStream(BrokenStream):
    """The upstream ended before the answer did."""


class IdleStream(BrokenStream):
    """The upstream fell silent in the middle of the answer."""

    code = "upstream_idle_timeout"

    def __init__(self) -> None:
        super().__init__("The upstream fell silent in the middle of its answer.")


class ErrorEvent(BrokenStream):
    """The upstream sent an error object inside its stream.

    Args:
        error: the upstream's error, already in OpenAI's shape.
    """

    def __init__(self, error: Mapping[str, Any]) -> None:
        super().__init__(str(error.get("message", "")))
        self.error = dict(error)

    def body(self) -> dict[str, Any]:
        """Return the upstream's own error object."""
        return {"error": self.error}
