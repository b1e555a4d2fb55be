"""How many tokens a request used, read from what the upstream reported."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

# A larger count is an upstream's mistake, and would spoil every sum.
MOST = 10**9
MAX_USD = 1_000_000
BYTES_PER_TOKEN = 4
FILE_BYTES = 6400  # 1600 tokens, as a large picture has


class TokenUsage(NamedTuple):
    """The tokens of a request; None if the upstream did not report a count."""

    prompt: int | None = None  # all of the input, `cached` and `cache_written` included
    cached: int | None = None  # read from the upstream's cache
    cache_written: int | None = None  # written to it; some providers charge for them
    completion: int | None = None  # all of the output, `reasoning` included
    reasoning: int | None = None
    is_text: bool = True  # False if some of the tokens are known to be audio

    @property
    def output_without_reasoning(self) -> int | None:
        """What throughput is measured by.

        Many models reason before their first content, in time that is not counted as the answer's.
        """
        if self.completion is None:
            return None
        return max(0, self.completion - (self.reasoning or 0))


UNKNOWN = TokenUsage()


def parse_usage(usage: Mapping[str, Any]) -> TokenUsage:
    """Read a usage object of OpenAI's shape; values of a wrong type count as absent."""
    if not usage:
        return UNKNOWN
    get = usage.get
    prompt, completion = count(get("prompt_tokens")), count(get("completion_tokens"))
    if prompt is not None and completion is not None:
        # Some upstreams leave reasoning out of the completion, and count it in the total only.
        total = count(get("total_tokens"))
        if total is not None and total - prompt > completion:
            completion = total - prompt
    cached = written = reasoning = audio = None
    details = get("prompt_tokens_details")
    if isinstance(details, dict):
        cached, audio = count(details.get("cached_tokens")), count(details.get("audio_tokens"))
        written = count(details.get("cache_write_tokens"))
    details = get("completion_tokens_details")
    if isinstance(details, dict):
        reasoning = count(details.get("reasoning_tokens"))
        audio = audio or count(details.get("audio_tokens"))
    return TokenUsage(prompt, cached, written, completion, reasoning, not audio)


def count(value: object) -> int | None:
    """Return a number of tokens; None for anything else."""
    return value if type(value) is int and 0 <= value <= MOST else None


def counted(usage: Mapping[str, Any] | None, events: int) -> Mapping[str, Any]:
    """Return a usage with completion tokens: the upstream's, else the events with content."""
    if usage is None:
        return {"completion_tokens": events}
    known = count(usage.get("completion_tokens")) is not None
    return usage if known else {**usage, "completion_tokens": events}


def estimated_tokens(value: object) -> int:
    """Estimate the tokens of what a request contains: one for four bytes, 1600 for a file."""
    return round(_weight(value) / BYTES_PER_TOKEN)


def _weight(value: object) -> int:
    if isinstance(value, dict):
        if value.get("type") == "base64":  # a file in Anthropic's shape
            return FILE_BYTES
        return sum(len(name) + _weight(child) for name, child in value.items())
    if isinstance(value, list):
        return sum(map(_weight, value))
    if isinstance(value, str):
        return FILE_BYTES if value.startswith("data:") else len(value.encode("utf-8", "replace"))
    return BYTES_PER_TOKEN if value is not None else 0


def billed_usd(usage: Mapping[str, Any]) -> float | None:
    """Return the price that an upstream states in its usage."""
    cost = usage.get("cost")
    if cost is None:
        return None
    if isinstance(cost, bool) or not isinstance(cost, int | float):
        return None
    return float(cost) if 0 <= cost < MAX_USD else None
