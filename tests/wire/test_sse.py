from __future__ import annotations

from unittest import mock

import pytest
from cuts import cut
from hypothesis import given
from hypothesis import strategies as st

from nexus_gateway.wire import sse

LINES = st.text(st.characters(codec="utf-8", exclude_characters="\r\n"), max_size=10)


@pytest.mark.proves("F24", "I-36")
@given(
    st.lists(LINES, min_size=1, max_size=6),
    st.sampled_from(["\n", "\r\n", "\r"]),
    st.lists(st.integers(0, 500), max_size=20),
    st.booleans(),
    st.sampled_from([3, sse.COPIED]),
)
def test_any_split_gives_the_same_events(
    texts: list[str], newline: str, places: list[int], bom: bool, long: int
) -> None:
    data = "".join(f"data: {text}{newline}{newline}" for text in texts).encode()
    data = (b"\xef\xbb\xbf" if bom else b"") + data
    framer = sse.Framer()
    with mock.patch.object(sse, "COPIED", long):
        blocks = [framer.feed(piece) for piece in cut(data, places)]
    events = [sse.parse_event(event) for event in sse.split(b"".join(blocks))]
    assert [event.data for event in events] == texts
    assert framer.rest() == b""


def test_fields_are_read_by_the_standard() -> None:
    event = sse.parse_event(b"event: delta\n: note\ndata:a\ndata:  b\nid: 3\nretry: 5\nodd")
    assert event == sse.Event("delta", "a\n b")


@pytest.mark.proves("F24", "I-36")
def test_other_line_separators_are_text() -> None:
    framer = sse.Framer()
    text = "a\u2028b\u2029c\x0bd\x85e"
    (event,) = sse.split(framer.feed(f"data: {text}\n\n".encode()))
    assert sse.parse_event(event).data == text


def test_an_event_is_returned_as_soon_as_it_is_complete() -> None:
    framer = sse.Framer()
    assert framer.feed(b"data: a\r") == b""
    assert framer.feed(b"\r") == b"data: a\n\n"
    assert framer.feed(b"data: b\r\n\r") == b"data: b\n\n"
    assert framer.feed(b"\ndata: c\n\n") == b"data: c\n\n"
