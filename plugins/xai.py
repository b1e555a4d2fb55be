"""xAI: https://docs.x.ai/docs/api-reference. Looked up 2026-11-30."""

from __future__ import annotations

import re
from collections.abc import Mapping

from nexus_gateway.provider import KnownFields, Model, Outcome, Provider, ToolNames, Verdict

# Matched from the beginning of the message, which is xAI's own text and never quotes a caller.
_NO_CREDIT = re.compile(rb'"error"\s*:\s*"Your team [^"]*(available credits|spending limit)')


class XAI(Provider):
    """xAI, by its OpenAI-compatible API."""

    title = "xAI"
    base_url = "https://api.x.ai/v1"
    default_model = "grok-4.3"
    successors = ("grok-4.7",)
    stream_usage = True
    # Its chat completions neither return nor use reasoning.
    adaptations = (KnownFields(), ToolNames("[a-zA-Z0-9_-]{1,64}", 64))
    models = (
        Model("grok-4.3", context=1_000_000, images=True),
        Model("grok-4.7", context=500_000, images=True),
        Model("grok-4.20-non-reasoning", context=1_000_000, images=True),
    )

    def read_failure(self, status: int, headers: Mapping[str, str], body: bytes) -> Verdict | None:
        """Recognise an account without credit, which has the status of a rate limit here."""
        if status in (403, 429) and _NO_CREDIT.search(body):
            return Verdict(Outcome.BAD_KEY, "the account has no credit left", status)
        return None
