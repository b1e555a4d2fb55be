"""How many tokens a request used, as its upstream told."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# By OpenAI's names and by OpenTelemetry's; the answer's come last.
KINDS = (("prompt_tokens", "input"), ("completion_tokens", "output"))
MOST_TOKENS = 10**9


def tokens_in(usage: Mapping[str, Any], field: str) -> int:
    """Return a number of tokens, 0 where nothing of sense is told."""
    told = usage.get(field)
    return told if type(told) is int and 0 < told <= MOST_TOKENS else 0
