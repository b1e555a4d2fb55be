"""The W3C's trace context, read strictly and written anew."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nexus_gateway.telemetry.tracing import Parent, read, write

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
GOOD = f"00-{TRACE}-{SPAN}-01"


def test_what_is_in_order() -> None:
    found = read([GOOD], ["a=1 , b@c= x", "d=2"])
    assert found == Parent(
        int(TRACE, 16), int(SPAN, 16), 1, (("a", "1"), ("b@c", " x"), ("d", "2"))
    )
    assert write(found) == {"traceparent": GOOD, "tracestate": "a=1,b@c= x,d=2"}


def test_a_later_version_may_say_more_and_goes_on_as_ours() -> None:
    found = read([f"7c-{TRACE}-{SPAN}-ff-what-is-to-come"], [])
    assert found is not None
    assert write(found) == {"traceparent": f"00-{TRACE}-{SPAN}-03"}


@pytest.mark.parametrize("parents", [[], [GOOD, GOOD], [GOOD + "\n00"], ["x" * 9999]])
def test_one_and_no_more(parents: list[str]) -> None:
    assert read(parents, ["a=1"]) is None


@pytest.mark.proves("S-17")
@pytest.mark.parametrize(
    "state", ["A=1", "a", "a=", "=1", "a=1,a=2", "a=\x7f", "a=b=c", "é=1", "a b=1", "a=1\r\nX: 1"]
)
def test_a_state_that_is_not_in_order_is_dropped_whole(state: str) -> None:
    found = read([GOOD], ["ok=1", state])
    assert found is not None
    assert found.state == ()


@given(st.lists(st.text(max_size=80), max_size=3), st.lists(st.text(max_size=80), max_size=3))
def test_whatever_comes_only_what_is_well_formed_goes_up(
    parents: list[str], states: list[str]
) -> None:
    for parent in (parents, [GOOD]):
        found = read(parent, states)
        for value in () if found is None else write(found).values():
            assert all(" " <= c <= "~" for c in value)
            assert len(value) <= 512
