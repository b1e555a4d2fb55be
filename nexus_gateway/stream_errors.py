"""How an answer may break after its first token, as one tree.

BrokenStream                 an answer died after its first token
├── TruncatedStream          it ended without finish_reason and [DONE]
├── IdleStream               it said nothing for too long
├── PluginBroke              the plugin that makes it failed
└── ErrorEvent               it carried an error object
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nexus_gateway.errors import error_object


class BrokenStream(Exception):
    """An answer that cannot be finished; the text is fit for the caller.

    Attributes:
        code: OpenAI's `code`.
        reason: what happened, for operators, in our words: what an upstream says is left out.
    """

    code = "upstream_stream_error"
    reason = "sent something that is not an answer"

    def body(self) -> dict[str, Any]:
        """Return the error object that ends the stream."""
        return error_object(str(self), kind="server_error", code=self.code)


class TruncatedStream(BrokenStream):
    """The upstream ended before the answer did."""

    reason = "cut its answer off"


class IdleStream(BrokenStream):
    """The upstream fell silent in the middle of the answer."""

    code = "upstream_idle_timeout"
    reason = "fell silent"

    def __init__(self) -> None:
        super().__init__("The upstream fell silent in the middle of its answer.")


class PluginBroke(BrokenStream):
    """The provider's plugin failed, or cannot go on."""

    reason = "the provider's plugin failed"


class ErrorEvent(BrokenStream):
    """The upstream sent an error object inside its stream.

    Args:
        error: the upstream's error, already in OpenAI's shape.
    """

    reason = "sent an error instead of an answer"

    def __init__(self, error: Mapping[str, Any]) -> None:
        super().__init__(str(error.get("message", "")))
        self.error = dict(error)

    def body(self) -> dict[str, Any]:
        """Return the upstream's own error object."""
        return {"error": self.error}
