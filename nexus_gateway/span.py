"""What follows an attempt from its beginning to its end, for traces."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from nexus_gateway.classify import Verdict


class Span(Protocol):
    """Follows one attempt. None of its methods raises.

    Attributes:
        headers: what goes to the upstream so that it can go on with the trace.
    """

    headers: Mapping[str, str]

    def first_content(self) -> None:
        """Note that a stream has its first content."""

    def used(self, usage: Mapping[str, Any]) -> None:
        """Note what the answer used, in OpenAI's shape."""

    def end(self, verdict: Verdict) -> None:
        """Note how it ended."""
