"""What each adaptation changes, and what holds for all of them."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nexus_gateway.provider import (
    Adaptation,
    CallIds,
    CallSignatures,
    CapOutput,
    DropFields,
    Effort,
    KnownFields,
    Reasoning,
    RenameFields,
    RenameRoles,
    SystemFirst,
    ToolNames,
    WholeSchemas,
)
from nexus_gateway.wire.adaptations import restore_names

PATH = ("extra_content", "google", "thought_signature")
NINE = CallIds("[a-zA-Z0-9]{9}", 9)
SIGNED = CallSignatures(PATH, "skip")
ADAPTATIONS: list[Adaptation] = [
    RenameFields({"max_completion_tokens": "max_tokens"}),
    DropFields(("store", "metadata")),
    RenameRoles({"developer": "system"}),
    KnownFields(),
    KnownFields(also=("reasoning", "cache_control", "thinking"), without=("refusal", "audio")),
    Reasoning(),
    Reasoning("reasoning", missing=" "),
    NINE,
    CallIds(".{1,40}", 40),
    SIGNED,
    SystemFirst(),
    CapOutput({"m": 100}),
    ToolNames("[a-zA-Z0-9_-]{1,64}", 64),
    ToolNames("[a-zA-Z_][a-zA-Z0-9_-]{0,19}", 20),
    WholeSchemas(),
    Effort({"m": ("low", "high")}),
    Effort({"other": ("low",)}),
]
each = pytest.mark.parametrize("adaptation", ADAPTATIONS, ids=repr)


def user(content: Any = "Hi", **more: Any) -> dict[str, Any]:
    return {"role": "user", "content": content, **more}


def assistant(*ids: str, content: Any = None, **more: Any) -> dict[str, Any]:
    calls = {"tool_calls": [call(id) for id in ids]} if ids else {}
    return {"role": "assistant", "content": content, **calls, **more}


def call(id: str, **more: Any) -> dict[str, Any]:
    function = {"name": "f", "arguments": "{}"}
    return {"id": id, "type": "function", "function": function, **more}


def result(id: str) -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": id, "content": "9"}


def text(content: str, **more: Any) -> dict[str, Any]:
    return {"type": "text", "text": content, **more}


def adapted(adaptation: Adaptation, *messages: Any) -> list[Any]:
    chat = {"model": "m", "messages": list(messages)}
    before = copy.deepcopy(chat)
    messages_after: list[Any] = list(adaptation.adapt(chat)["messages"])
    assert chat == before
    return messages_after


# Any JSON may stand in a field that the gateway does not check.
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)
IDS = st.sampled_from(["a", "call_1", "abcdefghi", "123456789", "toolu_" + "x" * 50]) | st.text()
PARTS = st.builds(
    lambda kind, value, more: {"type": kind, kind: value, **more},
    st.sampled_from(["text", "thinking", "image_url", "odd"]),
    st.text(max_size=3) | JSON,
    st.dictionaries(st.sampled_from(["cache_control", "type2"]), JSON, max_size=1),
)
NAMES = st.sampled_from(["f", "a.b", "mcp__" + "x" * 70]) | st.text()
FUNCTIONS = st.fixed_dictionaries({}, optional={"name": NAMES | JSON, "parameters": JSON})
CALLS = st.fixed_dictionaries(
    {},
    optional={
        **{"id": IDS | JSON, "extra_content": JSON, "x": JSON},
        "function": FUNCTIONS | JSON,
    },
)
MESSAGES = st.fixed_dictionaries(
    {"role": st.sampled_from(["system", "developer", "user", "assistant", "tool"])},
    optional={
        "content": st.none() | st.text(max_size=3) | st.lists(PARTS, max_size=3),
        "tool_calls": st.lists(CALLS, max_size=3) | JSON,
        "tool_call_id": IDS | JSON,
        "reasoning_content": st.text(max_size=3) | JSON,
        "reasoning": st.text(max_size=3) | JSON,
        "refusal": st.none() | st.text(max_size=3),
        "annotations": JSON,
    },
)
CHATS = st.fixed_dictionaries(
    {"model": st.just("m"), "messages": st.lists(MESSAGES, min_size=1, max_size=5)},
    optional={
        "tools": st.lists(st.just({"type": "function", "cache_control": {}}) | CALLS) | JSON,
        "tool_choice": CALLS | JSON,
        "reasoning_effort": st.sampled_from(["max", "low"]) | JSON,
        "max_tokens": st.integers(0, 200) | JSON,
        "store": JSON,
    },
)


@given(chat=CHATS)
def test_twice_changes_no_more_than_once_and_the_callers_chat_not_at_all(
    chat: dict[str, Any],
) -> None:
    before = copy.deepcopy(chat)
    for adaptation in ADAPTATIONS:  # all with one chat: to make one takes far longer
        once = adaptation.adapt(chat)
        assert chat == before
        assert adaptation.adapt(once) is once
        assert once is chat or once != chat


@each
def test_a_plain_chat_stays_the_same_object(adaptation: Adaptation) -> None:
    tools = [{"type": "function", "function": {"name": "f"}}, {"type": "web_search", "odd": 1}]
    messages = [
        {"role": "system", "content": "x"},
        user(),
        user([text("a")]),
        assistant(content=""),
    ]
    chat = {"model": "m", "max_tokens": 100, "tools": tools, "messages": messages}
    assert adaptation.adapt(chat) is chat


@each
def test_a_chat_without_messages_is_no_error(adaptation: Adaptation) -> None:
    for chat in ({}, {"messages": None}, {"messages": ["x"]}):
        assert adaptation.adapt(chat) is chat


def test_fields_and_roles_of_the_body_are_changed() -> None:
    chat = {"store": 1, "max_completion_tokens": 2, "messages": [{"role": "developer"}]}
    for adaptation in ADAPTATIONS[:3]:
        chat = dict(adaptation.adapt(chat))
    assert chat == {"max_tokens": 2, "messages": [{"role": "system"}]}


def test_only_fields_of_the_reference_are_kept() -> None:
    mark = {"cache_control": {"type": "ephemeral"}}
    messages = [
        user([text("a", **mark)], timestamp=1),
        user([text("a", **mark), text("b")]),
        assistant(
            content=[{"type": "thinking", "thinking": "Hm"}, text("a"), text("b")],
            tool_calls=[call("c", index=0, extra_content={})],
            **{"reasoning_content": "Hm", "annotations": [], "audio": None, "refusal": None},
        ),
    ]
    assert adapted(KnownFields(), *messages) == [
        user("a"),
        user([text("a"), text("b")]),
        assistant("c", content="ab"),
    ]
    kept = KnownFields(also=("cache_control", "thinking"))
    assert adapted(kept, messages[1])[0] is messages[1]
    assert adapted(kept, messages[2])[0]["content"] is messages[2]["content"]
    tools = [{"type": "function", "function": {}, **mark}, {"type": "odd", **mark}]
    chat = {"messages": [user()], "tools": tools}
    assert KnownFields().adapt(chat)["tools"] == [{"type": "function", "function": {}}, tools[1]]
    assert kept.adapt(chat) is chat


def test_a_refusal_becomes_the_content_where_it_is_refused() -> None:
    without = KnownFields(without=("refusal",))
    no = {"role": "assistant", "refusal": "No."}
    assert adapted(without, {**no, "content": None}, no) == [assistant(content="No.")] * 2
    assert adapted(without, {**no, "content": "Yes."}) == [assistant(content="Yes.")]
    assert adapted(KnownFields(), no) == [no]


def test_reasoning_has_the_name_of_the_backend() -> None:
    turns = [
        assistant(content="a", reasoning="Hm"),
        assistant(content="a", reasoning_content="Hm"),
        assistant(content="a", reasoning_content="Hm", reasoning="other"),
    ]
    assert adapted(Reasoning(), *turns) == [turns[1]] * 3
    assert adapted(Reasoning("reasoning"), *turns) == [turns[0]] * 3
    parts = assistant(content=[{"type": "thinking", "thinking": [text("Hm")]}, text("a")])
    chat = KnownFields(also=("reasoning",)).adapt(
        Reasoning("reasoning").adapt({"messages": [parts]})
    )
    assert chat["messages"] == turns[:1]
    assert adapted(Reasoning(), user(reasoning="Hm")) == [user(reasoning="Hm")]


def test_missing_reasoning_is_filled_in_if_tools_are_called() -> None:
    fill = Reasoning(missing=" ")
    talk = [assistant(content="a"), assistant("c"), assistant("d", reasoning="Hm"), result("c")]
    assert [m.get("reasoning_content") for m in adapted(fill, *talk)] == [" ", " ", "Hm", None]
    empty = assistant("c", reasoning_content="")
    assert adapted(fill, empty) == [assistant("c", reasoning_content=" ")]
    assert adapted(fill, talk[0], user()) == [talk[0], user()]


def ids_of(messages: Iterable[dict[str, Any]]) -> list[str]:
    return [
        id
        for message in messages
        for id in (
            *(c["id"] for c in message.get("tool_calls", [])),
            *([message["tool_call_id"]] if "tool_call_id" in message else []),
        )
    ]


def conversation(ids: Iterable[str]) -> list[dict[str, Any]]:
    return [message for id in ids for message in (assistant(id), result(id), user())]


# With so few possible ids collisions are common.
FEW = CallIds("[a-zA-Z0-9]", 1)


@pytest.mark.parametrize("adaptation", [NINE, FEW, CallIds(".{1,40}", 40)], ids=repr)
@given(ids=st.lists(IDS | st.sampled_from("aAbB09"), max_size=30), turns=st.integers(0, 30))
def test_ids_fit_differ_match_and_stay(adaptation: CallIds, ids: list[str], turns: int) -> None:
    after = ids_of(adapted(adaptation, *conversation(ids)))
    assert all(re.fullmatch(adaptation.fits, id) for id in after)
    calls, results = after[::2], after[1::2]
    assert calls == results
    assert len({*zip(ids, calls, strict=True)}) == len({*ids}) == len({*calls})
    assert ids_of(adapted(adaptation, *conversation(ids[:turns]))) == after[: 2 * turns]
    fitting = [id for id in ids if re.fullmatch(adaptation.fits, id)]
    if adaptation is not FEW:
        assert {*fitting} <= {*calls}
        assert all(new == id for id, new in zip(ids, calls, strict=True) if id in fitting)


def test_an_id_of_openai_becomes_nine_letters_and_digits() -> None:
    call_, result_ = adapted(
        NINE,
        assistant("call_PTLP8xhu3uwZk4l3nlnrrJha", "abcDEF123"),
        result("call_PTLP8xhu3uwZk4l3nlnrrJha"),
    )
    new, kept = (c["id"] for c in call_["tool_calls"])
    assert re.fullmatch("[a-zA-Z0-9]{9}", new)
    assert (result_["tool_call_id"], kept) == (new, "abcDEF123")


def test_calls_of_other_models_get_the_placeholder() -> None:
    own = {"extra_content": {"google": {"thought_signature": "own"}}}
    skip = {"extra_content": {"google": {"thought_signature": "skip"}}}
    first_of_two = assistant(tool_calls=[call("a", **own), call("b")])
    assert adapted(SIGNED, first_of_two, assistant("a", "b"), user()) == [
        first_of_two,
        assistant(tool_calls=[call("a", **skip), call("b", **skip)]),
        user(),
    ]
    partly = {"extra_content": {"google": {"more": 1}, "x": 2}}
    (message,) = adapted(SIGNED, assistant(tool_calls=[call("a", **partly)]))
    assert message["tool_calls"][0]["extra_content"] == {
        "google": {"more": 1, "thought_signature": "skip"},
        "x": 2,
    }


def test_system_messages_are_joined_at_the_beginning() -> None:
    system, late = {"role": "system", "content": "a"}, {"role": "developer", "content": "b"}
    assert adapted(SystemFirst(), user(), late) == [late, user()]
    assert adapted(SystemFirst(), system, user(), late, user("2")) == [
        {"role": "system", "content": "a\n\nb"},
        user(),
        user("2"),
    ]
    marked = {"role": "system", "content": [text("c", cache_control={})]}
    assert adapted(SystemFirst(), system, user(), marked)[0]["content"] == [
        text("a"),
        text("c", cache_control={}),
    ]


def test_the_length_of_an_answer_is_limited() -> None:
    cap = CapOutput({"m": 100})
    chat = {"model": "m", "max_tokens": 101, "max_completion_tokens": 7, "messages": []}
    assert cap.adapt(chat) == {**chat, "max_tokens": 100}
    assert cap.adapt({**chat, "model": "n"}) == {**chat, "model": "n"}


LONG = "mcp__" + "a" * 70
TOOL_NAMES = st.lists(
    st.sampled_from(["f", "1f", "a.b", "a_b", LONG, LONG + "b", LONG + "c"])
    | st.text("aé.b1", min_size=1, max_size=9).map(lambda text: text * 12),
    unique=True,
)
# With names this short, cut ones often begin alike.
SHORT_NAMES = ToolNames("[a-zA-Z0-9_-]{1,10}", 10)


LETTER_FIRST = ToolNames("[a-zA-Z_][a-zA-Z0-9_-]{0,63}", 64)


@pytest.mark.parametrize(
    "adaptation", [SHORT_NAMES, LETTER_FIRST, ToolNames("[a-zA-Z0-9_-]{1,64}", 64)], ids=repr
)
@given(names=TOOL_NAMES, called=st.lists(st.integers(0, 99), max_size=5))
def test_names_fit_differ_and_come_back(
    adaptation: ToolNames, names: list[str], called: list[int]
) -> None:
    tools = [{"type": "function", "function": {"name": name}} for name in names]
    calls = [tools[n % len(names)] for n in called] if names else []
    choice = tools[0] if tools else "auto"
    chat = {
        "messages": [{"role": "assistant", "tool_calls": calls}],
        "tools": tools,
        "tool_choice": choice,
    }
    after = adaptation.adapt(chat)
    new = [tool["function"]["name"] for tool in after["tools"]]
    assert all(re.fullmatch(adaptation.fits, name) for name in new)
    assert len({*new}) == len(names)
    fitting = {name for name in names if re.fullmatch(adaptation.fits, name)}
    assert fitting <= {*new}
    assert (after is chat) == (len(fitting) == len(names))
    by_name = dict(zip(names, new, strict=True))
    asked = [call["function"]["name"] for call in after["messages"][0]["tool_calls"]]
    assert asked == [by_name[call["function"]["name"]] for call in calls]
    assert not tools or after["tool_choice"] == after["tools"][0]
    back = {short: name for name, short in adaptation.renamed(chat).items()}
    for holder in ("delta", "message"):
        answer = {"choices": [{holder: {"tool_calls": after["tools"]}}]}
        restored = restore_names(answer, back)["choices"][0][holder]["tool_calls"]
        assert restored == tools
        assert restore_names({"choices": []}, back) == {"choices": []}


def test_a_choice_among_tools_is_renamed() -> None:
    tool = {"type": "function", "function": {"name": LONG}}
    choice = {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [tool]}}
    after = SHORT_NAMES.adapt({"tools": [tool], "tool_choice": choice, "messages": []})
    assert after["tool_choice"]["allowed_tools"]["tools"] == after["tools"]


def test_objects_get_their_properties_and_values_stay() -> None:
    value = {"type": "object"}
    parameters = {
        "type": "object",
        "properties": {"a": {"type": "object"}, "b": {"anyOf": [{"type": "object"}, {}]}},
        "default": value,
    }
    chat = {"tools": [{"type": "function", "function": {"name": "f", "parameters": parameters}}]}
    (tool,) = WholeSchemas().adapt(chat)["tools"]
    whole = {"type": "object", "properties": {}}
    assert tool["function"]["parameters"] == {
        "type": "object",
        "properties": {"a": whole, "b": {"anyOf": [whole, {}]}},
        "default": value,
    }


@pytest.mark.parametrize(
    ("model", "asked", "expected"),
    [
        ("thinker-1", "low", "low"),
        ("thinker-1", "max", "high"),
        ("thinker-1", "none", "low"),
        ("thinker-1", "a new one", "a new one"),
        ("thinker-1", None, None),
        ("thinker-1", ["low"], ["low"]),
        ("switch", "minimal", "none"),
        ("switch", "low", "default"),
        ("switch", "high", "default"),
        ("gap", "medium", "high"),
    ],
)
def test_an_effort_is_one_that_the_model_takes(model: str, asked: Any, expected: Any) -> None:
    taken = {
        "thinker-.*": ("low", "medium", "high"),
        "switch": ("none", "default"),
        "gap": ("low", "high"),
    }
    chat = {"model": model, "reasoning_effort": asked}
    assert Effort(taken).adapt(chat) == {**chat, "reasoning_effort": expected}
    assert Effort(taken).adapt({**chat, "model": "talker"}) == {"model": "talker"}
