"""W3C trace context: which headers of a caller are accepted and sent to an upstream."""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any

import pytest
from fakes import make_instance
from hypothesis import given
from hypothesis import strategies as st
from multidict import CIMultiDict, CIMultiDictProxy
from opentelemetry.sdk.trace import TracerProvider

from nexus_gateway.telemetry.tracing import Tracing

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
GOOD = f"00-{TRACE}-{SPAN}-01"
TRACING = Tracing(TracerProvider())


def upstream_headers(parents: list[str], states: list[str]) -> dict[str, str]:
    """Return the headers of an attempt for a request with these headers."""
    headers = CIMultiDict(
        [("traceparent", p) for p in parents] + [("tracestate", s) for s in states]
    )
    trace = TRACING.begin(CIMultiDictProxy(headers), "chat", "/v1/chat/completions")
    attempt: Any = SimpleNamespace(instance=make_instance(), model="fake-large")
    return dict(trace.attempt(attempt, stream=True).headers)


def test_a_valid_trace_is_continued_with_all_of_its_state() -> None:
    headers = upstream_headers([GOOD], ["a=1 , b@c= x", "d=2"])
    version, trace, span, flags = headers["traceparent"].split("-")
    assert (version, trace, flags) == ("00", TRACE, "01")
    assert span != SPAN
    assert headers["tracestate"] == "a=1,b@c= x,d=2"


@pytest.mark.parametrize("more", ["", "-future-fields"])
def test_a_later_version_is_read_and_sent_as_version_0(more: str) -> None:
    headers = upstream_headers([f"7c-{TRACE}-{SPAN}-ff{more}"], [])
    assert headers["traceparent"].startswith(f"00-{TRACE}-")
    assert headers["traceparent"][-3:] in ("-01", "-03")  # no flag that the standard lacks
    assert "future" not in headers["traceparent"]


@pytest.mark.proves("S-17")
@pytest.mark.parametrize(
    "parents",
    [
        [],
        [""],
        ["no"],
        [GOOD, GOOD],
        [GOOD + "\n00"],
        [GOOD + "-more"],
        [GOOD[:-1]],
        [GOOD.replace("-", "_")],
        [f"00-{TRACE.upper()}-{SPAN}-01"],
        [f"00-{'0' * 32}-{SPAN}-01"],
        [f"00-{TRACE}-{'0' * 16}-01"],
        [f"ff-{TRACE}-{SPAN}-01"],
        [f"7c-{TRACE}-{SPAN}-01-{'x' * 500}"],
        ["x" * 9999],
    ],
)
def test_a_malformed_parent_begins_a_new_trace_without_the_state(parents: list[str]) -> None:
    headers = upstream_headers(parents, ["a=1"])
    assert list(headers) == ["traceparent"]
    assert TRACE not in headers["traceparent"].lower()


@pytest.mark.proves("S-17")
@pytest.mark.parametrize(
    "state",
    [
        *("A=1", "a", "a=", "=1", "a=1,a=2", "a=b=c", "é=1", "a=é", "a b=1"),
        *("a=\x7f", "a=\x00", "a=1\tb", "a=1\r\nX: 1", "a=1\n", "\na=1", "a=1,\x1b[31mred"),
        "a=" + "x" * 257,
        "a" * 257 + "=1",
        ",".join(f"k{n}=v" for n in range(32)),  # the 33rd member, with the one beside it
        ",".join(f"k{n}={'v' * 60}" for n in range(8)),  # 8 valid members, more than 512 characters
        "a=" + "x" * 100_000,
    ],
)
def test_an_invalid_state_is_dropped_and_never_logged(
    state: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    assert "tracestate" not in upstream_headers([GOOD], ["ok=1", state])
    assert "tracestate" not in upstream_headers([GOOD], [state, "ok=1"])
    assert not caplog.records


def test_the_current_span_of_this_process_is_not_the_parent() -> None:
    with TracerProvider().get_tracer("other").start_as_current_span("other") as other:
        headers = upstream_headers([], [])
    assert f"{other.get_span_context().trace_id:032x}" not in headers["traceparent"]


@given(st.lists(st.text(max_size=80), max_size=3), st.lists(st.text(max_size=80), max_size=3))
def test_only_valid_headers_reach_the_upstream(parents: list[str], states: list[str]) -> None:
    for parent in (parents, [GOOD]):
        for value in upstream_headers(parent, states).values():
            assert all(" " <= c <= "~" for c in value)
            assert len(value) <= 512
