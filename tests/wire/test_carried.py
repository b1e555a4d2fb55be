"""What callers carry for the gateway comes back as it was."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nexus_gateway.wire.carried import (
    CALL,
    IN_ID,
    LONGEST_ID,
    is_loaded,
    load_call,
    load_id,
    load_reasoning,
    unload_call,
    unload_id,
    unload_reasoning,
)

# Texts that UTF-8 can encode.
TEXTS = st.text(st.characters(codec="utf-8"))
EXTRAS = st.dictionaries(TEXTS, TEXTS | st.dictionaries(TEXTS, TEXTS | st.integers(-9, 9)))


@given(id=TEXTS.filter(lambda text: IN_ID not in text), extra=EXTRAS)
def test_an_id_carries_any_object(id: str, extra: dict[str, Any]) -> None:
    loaded = load_id(id, extra)
    assert unload_id(loaded) == (id, extra or None)
    assert re.fullmatch("[a-zA-Z0-9_-]*", loaded.removeprefix(id))


@given(id=TEXTS, times=st.integers(1, 100), extra=EXTRAS)
def test_reasoning_carries_what_a_short_id_cannot(
    id: str, times: int, extra: dict[str, Any]
) -> None:
    id *= times
    short, carried = load_call(id, extra)
    assert len(short) <= LONGEST_ID
    assert (carried is None) == (short == id and not extra)
    if carried is not None:
        assert unload_call(carried) == {short: (id, extra or None)}
        assert is_loaded(carried)


@given(text=TEXTS)
def test_reasoning_is_carried(text: str) -> None:
    assert unload_reasoning(load_reasoning(text)) == text


@pytest.mark.parametrize("extra", [None, "x", [1], {}])
def test_anything_else_is_not_carried(extra: object) -> None:
    assert load_id("call_1", extra) == "call_1"
    assert load_call("call_1", extra) == ("call_1", None)


@given(id=st.text("abc_", max_size=9), length=st.integers(0, 200))
def test_a_cut_id_is_still_the_calls(id: str, length: int) -> None:
    loaded = load_id(id, {"google": {"thought_signature": "A+/=" * 30}})
    plain, extra = unload_id(loaded[: len(id) + len(IN_ID) + length])
    assert plain == id
    assert extra is None or load_id(id, extra) == loaded


@pytest.mark.parametrize("other", [None, 5, "", "gAAAAABencrypted", "rs_open"])
def test_reasoning_of_a_backend_is_not_ours(other: object) -> None:
    assert unload_reasoning(other) is None
    assert unload_call(other) is None
    assert not is_loaded(other)


@pytest.mark.parametrize("odd", ["!", "é", "a", "_w", "bnVsbA"])
def test_garbage_is_no_error(odd: str) -> None:
    assert unload_id(f"call_1{IN_ID}{odd}") == ("call_1", None)
    assert isinstance(unload_reasoning(load_reasoning("") + odd), str)
    assert unload_call(CALL + odd) == {}
