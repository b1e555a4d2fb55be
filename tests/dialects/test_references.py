"""References of Responses requests: what takes their place, and what is kept for later ones."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nexus_gateway.dialects.responses.references import (
    final_response,
    ids_of,
    referenced_ids,
    resolved,
    with_ids,
)
from nexus_gateway.errors import InvalidRequest

KINDS = ("message", "function_call", "function_call_output", "reasoning", "web_search_call")
ITEM = st.builds(
    lambda kind, number, more: {"type": kind, "id": f"{kind}_{number}", **more},
    st.sampled_from(KINDS),
    st.integers(0, 99),
    st.sampled_from([{}, {"encrypted_content": "x"}, {"content": []}]),
)
OWN = st.sampled_from([{"role": "user", "content": "Hi"}, {"type": "reasoning", "id": "rs_own"}])


@given(st.lists(ITEM), st.lists(st.one_of(ITEM, OWN)), st.data())
def test_references_are_replaced_in_their_places(
    history: list[Any], input: list[Any], data: st.DataObject
) -> None:
    kept = {item["id"]: item for item in input if "id" in item and item["id"] != "rs_own"}
    chosen = data.draw(st.sets(st.sampled_from(sorted(kept)))) if kept else set()
    ids = [id for id in kept if id in chosen]
    unique = [i for n, i in enumerate(input) if i.get("id") not in kept or i is kept[i["id"]]]
    asked = [
        {"type": "item_reference", "id": item["id"]} if item.get("id") in chosen else item
        for item in unique
    ]
    assert sorted(referenced_ids({"input": asked})) == sorted(ids)
    full, native = resolved({"input": asked}, history, kept)
    assert full == [*history, *unique]
    own = [item for item in unique if item.get("id") not in chosen]
    assert [item for item in native if any(item is one for one in own)] == own
    for item in native:
        if not any(item is one for one in own):
            assert "id" not in item or item["type"] == "web_search_call"
            assert item["type"] != "reasoning" or item.get("encrypted_content")
    dropped = [
        item
        for item in [*history, *(kept[id] for id in ids)]
        if item["type"] == "reasoning" and "encrypted_content" not in item
    ]
    assert len(native) == len(full) - len(dropped)


@pytest.mark.parametrize("value", [None, 7, "Hi", [], [7], [None], [{}], [{"id": 7}]])
def test_what_is_no_reference_is_left_to_the_check_of_the_input(value: Any) -> None:
    assert referenced_ids({"input": value}) == []


def test_an_item_that_is_referred_to_twice_is_refused() -> None:
    twice = [{"type": "item_reference", "id": "msg_1"}, {"id": "msg_1"}]
    with pytest.raises(InvalidRequest, match="Duplicate item found with id msg_1") as raised:
        referenced_ids({"input": twice})
    assert raised.value.param == "input"


@given(st.lists(st.one_of(ITEM, OWN)))
def test_kept_items_have_ids_and_keep_them(items: list[Any]) -> None:
    kept = with_ids(items)
    pairs = list(zip(kept, items, strict=True))
    assert all(one["id"] == item.get("id", one["id"]) for one, item in pairs)
    assert with_ids(kept) == kept
    new = [one["id"] for one, item in pairs if "id" not in item]
    assert len(set(new)) == len(new)
    assert set(ids_of(kept)) == {one["id"] for one in kept}


def test_ids_that_nobody_could_ask_for_are_left_out() -> None:
    assert ids_of([{"id": "a"}, {"id": 7}, {}, 7, {"id": "\ud800"}, {"id": "a"}]) == ["a"]


@given(st.binary())
def test_what_is_no_end_of_a_stream_has_no_response(data: bytes) -> None:
    assert final_response(data) is None


@pytest.mark.parametrize("kind", ["response.completed", "response.incomplete"])
def test_the_last_event_has_the_response(kind: str) -> None:
    delta = b'data: {"type": "response.output_text.delta"}\n\n'
    end = json.dumps({"type": kind, "response": {"id": "r"}}).encode()
    events = delta + b"event: x\ndata: " + end + b"\n\n"
    assert final_response(events) == b'{"id":"r"}'
    assert final_response(events + delta) is None
