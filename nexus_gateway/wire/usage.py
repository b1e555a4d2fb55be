"""How many tokens a request used, read from what its upstream told: once, for all who count."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

# What is said to be more is nonsense, and would spoil every sum.
MOST = 10**9


class TokenUsage(NamedTuple):
    """What a request used; None where nobody said.

    Args:
        prompt: what was read, all of `cached` and `cache_written` included.
        cached: how much of that an upstream's cache had.
        cache_written: how much of that an upstream put into its cache, which some charge for.
        completion: what was written, the reasoning included.
        reasoning: how much of that was thought only.
        is_text: whether all of it was text, as far as is known.
    """

    prompt: int | None = None
    cached: int | None = None
    cache_written: int | None = None
    completion: int | None = None
    reasoning: int | None = None
    is_text: bool = True

    @property
    def output_without_reasoning(self) -> int | None:
        """What was written without what was thought, where that is known: what a pace goes by.

        Many think before their first content, in time that is not the answer's.
        """
        if self.completion is None:
            return None
        return max(0, self.completion - (self.reasoning or 0))


UNKNOWN = TokenUsage()


def parse_usage(usage: Mapping[str, Any]) -> TokenUsage:
    """Read a usage in OpenAI's shape, whatever an upstream put into it."""
    if not usage:
        return UNKNOWN
    told = usage.get
    prompt, completion = count(told("prompt_tokens")), count(told("completion_tokens"))
    if prompt is not None and completion is not None:
        # Some leave reasoning out of what was written, and have it in the total alone.
        total = count(told("total_tokens"))
        if total is not None and total - prompt > completion:
            completion = total - prompt
    cached = written = reasoning = audio = None
    details = told("prompt_tokens_details")
    if isinstance(details, dict):
        cached, audio = count(details.get("cached_tokens")), count(details.get("audio_tokens"))
        written = count(details.get("cache_write_tokens"))
    details = told("completion_tokens_details")
    if isinstance(details, dict):
        reasoning = count(details.get("reasoning_tokens"))
        audio = audio or count(details.get("audio_tokens"))
    return TokenUsage(prompt, cached, written, completion, reasoning, not audio)


def count(told: object) -> int | None:
    """Return a number of tokens; None for anything else."""
    return told if type(told) is int and 0 <= told <= MOST else None


def completion_tokens(usage: Mapping[str, Any] | None) -> int | None:
    """Return how many tokens an answer had, by its usage; None where it does not say."""
    return count((usage or {}).get("completion_tokens"))


def counted(usage: Mapping[str, Any] | None, events: int) -> Mapping[str, Any]:
    """Return a usage that counts the answer's tokens: as it says, else its events with content."""
    if usage is not None and completion_tokens(usage) is not None:
        return usage
    return {**(usage or {}), "completion_tokens": events}
