"""The token counts of a `usage`, whatever an upstream put into it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nexus_gateway.wire.usage import MOST, UNKNOWN, TokenUsage, count, parse_usage

USED = {"prompt_tokens": 12, "completion_tokens": 3, "total_tokens": 15}


@pytest.mark.parametrize(
    ("usage", "tokens"),
    [
        ({}, UNKNOWN),
        ({"completion_tokens": 3}, TokenUsage(completion=3)),
        (
            {
                **USED,
                "prompt_tokens_details": {"cached_tokens": 8, "cache_write_tokens": 1},
                "completion_tokens_details": {"reasoning_tokens": 2},
            },
            TokenUsage(12, 8, 1, 3, 2),
        ),
        # Reasoning that only the total includes.
        ({**USED, "total_tokens": 40}, TokenUsage(12, completion=28)),
        ({"prompt_tokens": 7, "total_tokens": 7}, TokenUsage(7)),
        (
            {**USED, "prompt_tokens_details": {"audio_tokens": 5}},
            TokenUsage(12, completion=3, is_text=False),
        ),
        (
            {**USED, "completion_tokens_details": {"audio_tokens": 5}},
            TokenUsage(12, completion=3, is_text=False),
        ),
        ({**USED, "completion_tokens_details": {"audio_tokens": 0}}, TokenUsage(12, completion=3)),
        ({"prompt_tokens": 1, "prompt_tokens_details": [1]}, TokenUsage(1)),
    ],
)
def test_a_usage_is_parsed(usage: dict[str, object], tokens: TokenUsage) -> None:
    assert parse_usage(usage) == tokens


@pytest.mark.parametrize(
    ("tokens", "visible"),
    [
        (UNKNOWN, None),
        (TokenUsage(reasoning=2), None),
        (TokenUsage(completion=9), 9),
        (TokenUsage(completion=9, reasoning=2), 7),
        (TokenUsage(completion=9, reasoning=10), 0),
    ],
)
def test_output_without_reasoning_excludes_reasoning_tokens(
    tokens: TokenUsage, visible: int | None
) -> None:
    assert tokens.output_without_reasoning == visible


@pytest.mark.parametrize("value", [None, "9", True, -1, 2.5, MOST + 1, 2**70, float("nan"), [1]])
def test_an_invalid_number_of_tokens_is_unknown(value: object) -> None:
    assert count(value) is None
    assert parse_usage({"prompt_tokens": value, "completion_tokens": value}) == UNKNOWN


ANY_VALUE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(sorted(USED)), inner)
    ),
    max_leaves=5,
)
FIELDS = [*USED, "prompt_tokens_details", "completion_tokens_details"]


@given(st.dictionaries(st.sampled_from(FIELDS), ANY_VALUE))
def test_any_usage_gives_only_counts(usage: dict[str, object]) -> None:
    for value in parse_usage(usage)[:-1]:
        assert value is None or (type(value) is int and value >= 0)
