"""The tools of Responses, as Codex and other clients declare them."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from responses_dialect import (
    chat_of,
    events_of,
    full_response_of,
    messages_of,
    official_event,
    parse,
    response_of,
)

from nexus_gateway.errors import InvalidRequest
from nexus_gateway.wire.chunks import Answer, Chunk

ANSWER = Answer("chatcmpl-7", 5, "m")
USER = {"role": "user", "content": "Hi"}
SCHEMA = {"type": "object", "properties": {"q": {"type": "string"}}}
FUNCTION = {"type": "function", "name": "wait", "parameters": SCHEMA, "strict": False}
GRAMMAR = {"type": "grammar", "syntax": "lark", "definition": "start: /.+/"}
PATCH = {"type": "custom", "name": "apply_patch", "description": "Edit files.", "format": GRAMMAR}
NOTE = {"type": "custom", "name": "note", "format": {"type": "text"}}
DEMO = {
    "type": "namespace",
    "name": "mcp__demo__",
    "description": "Demo tools",
    "tools": [FUNCTION, NOTE],
}
CRM = {"type": "namespace", "name": "crm", "description": "", "tools": [FUNCTION]}
SEARCH = {
    "type": "tool_search",
    "execution": "client",
    "description": "Find tools.",
    "parameters": SCHEMA,
}
SHELL = {"type": "local_shell"}
WEB = {"type": "web_search", "external_web_access": True}
TOOLS = [FUNCTION, PATCH, DEMO, CRM, SEARCH, SHELL, WEB]
PATCH_TEXT = '*** Begin Patch\n*** Add File: a.txt\n+"é\\"\n*** End Patch'
# The function that a model calls, its arguments, and the item that the caller gets.
CALLS: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("wait", {"q": "x"}, {"type": "function_call", "name": "wait", "arguments": '{"q":"x"}'}),
    (
        "apply_patch",
        {"input": PATCH_TEXT},
        {"type": "custom_tool_call", "name": "apply_patch", "input": PATCH_TEXT},
    ),
    (
        "mcp__demo__wait",
        {"q": "x"},
        {
            "type": "function_call",
            "name": "wait",
            "namespace": "mcp__demo__",
            "arguments": '{"q":"x"}',
        },
    ),
    (
        "mcp__demo__note",
        {"input": "x"},
        {"type": "custom_tool_call", "name": "note", "namespace": "mcp__demo__", "input": "x"},
    ),
    (
        "crm__wait",
        {},
        {"type": "function_call", "name": "wait", "namespace": "crm", "arguments": "{}"},
    ),
    (
        "tool_search",
        {"q": "calendar"},
        {"type": "tool_search_call", "execution": "client", "arguments": {"q": "calendar"}},
    ),
    (
        "local_shell",
        {"command": ["ls", "-l"], "timeout_ms": 9},
        {
            "type": "local_shell_call",
            "action": {"type": "exec", "command": ["ls", "-l"], "env": {}, "timeout_ms": 9},
        },
    ),
]
NAMES = [name for name, _, _ in CALLS]
each_call = pytest.mark.parametrize(("name", "arguments", "item"), CALLS, ids=NAMES)


def dumped(value: object) -> str:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)


def call_chunks(name: str, arguments: str, size: int = 3) -> list[Chunk]:
    pieces = [arguments[i : i + size] for i in range(0, len(arguments), size)]
    chunks = [ANSWER.call(0, "c1", name), *(ANSWER.arguments(0, piece) for piece in pieces)]
    return [*chunks, ANSWER.finish("tool_calls")]


def functions_of(**fields: Any) -> dict[str, dict[str, Any]]:
    return {tool["function"]["name"]: tool["function"] for tool in chat_of(**fields)["tools"]}


def test_tools_that_the_caller_runs_become_functions() -> None:
    functions = functions_of(tools=TOOLS)
    assert list(functions) == NAMES
    assert functions["wait"] == {"name": "wait", "parameters": SCHEMA, "strict": False}
    assert functions["crm__wait"] == {**functions["wait"], "name": "crm__wait"}
    patch, note = functions["apply_patch"], functions["mcp__demo__note"]
    assert patch["description"] == (
        "Edit files.\n\nThe input must match this lark grammar:\nstart: /.+/"
    )
    for custom in (patch, note):
        assert list(custom["parameters"]["properties"]) == custom["parameters"]["required"]
        assert custom["parameters"]["properties"]["input"]["type"] == "string"
    assert "description" not in note
    assert functions["tool_search"]["parameters"] == SCHEMA
    assert functions["local_shell"]["parameters"]["required"] == ["command"]


def test_tools_in_the_input_are_added() -> None:
    """Codex sends those of current models so, the plain ones in a namespace of their own."""
    lite = {"type": "namespace", "name": "functions", "description": "", "tools": [FUNCTION, PATCH]}
    item = {"type": "additional_tools", "role": "developer", "tools": [lite, DEMO, WEB]}
    system = {"type": "message", "role": "developer", "content": "Be kind."}
    fields = {"input": [item, system, USER], "tool_choice": "auto", "parallel_tool_calls": True}
    chat = chat_of(**fields)
    assert chat["messages"] == [{"role": "system", "content": "Be kind."}, USER]
    assert list(functions_of(**fields)) == [
        "wait",
        "apply_patch",
        "mcp__demo__wait",
        "mcp__demo__note",
    ]
    assert (chat["tool_choice"], chat["parallel_tool_calls"]) == ("auto", True)
    patch = call_chunks("apply_patch", dumped({"input": PATCH_TEXT}))
    (call,) = response_of(*patch, **fields)["output"]
    assert (call["type"], call["name"], call["input"]) == (
        "custom_tool_call",
        "apply_patch",
        PATCH_TEXT,
    )
    assert "namespace" not in call
    native = json.loads(parse(fields).native.encode("m"))
    assert native["input"] == fields["input"]


@each_call
@pytest.mark.parametrize("size", [1, 4, 999])
def test_calls_come_back_as_they_were_declared(
    name: str, arguments: dict[str, Any], item: dict[str, Any], size: int
) -> None:
    chunks = call_chunks(name, dumped(arguments), size)
    for response in (response_of(*chunks, tools=TOOLS), full_response_of(*chunks, tools=TOOLS)):
        (call,) = response["output"]
        assert call.pop("id").split("_")[0] in ("fc", "ctc", "tsc", "lsh")
        assert call == {**item, "call_id": "c1", "status": "completed"}
    events = events_of(chunks, tools=[t for t in TOOLS if t is not WEB])
    for event in events:
        official_event().validate_python(event)
    added, *pieces, done = events[2:-1]
    assert (added["type"], done["type"]) == (
        "response.output_item.added",
        "response.output_item.done",
    )
    assert {event["item_id"] for event in pieces} <= {added["item"]["id"]}
    assert added["item"].keys() == done["item"].keys()


@each_call
def test_a_call_and_its_output_are_sent_back(
    name: str, arguments: dict[str, Any], item: dict[str, Any]
) -> None:
    chunks = call_chunks(name, dumped(arguments))
    (call,) = response_of(*chunks, tools=TOOLS)["output"]
    output: dict[str, Any] = {"type": f"{item['type']}_output", "call_id": "c1", "output": "9"}
    shown = "9"
    if name == "tool_search":
        output = {"type": "tool_search_output", "call_id": "c1", "tools": [CRM]}
        shown = "Tools found: crm__wait."
    messages = chat_of(input=[USER, call, output, USER], tools=TOOLS)["messages"]
    sent = messages[1]["tool_calls"][0]
    assert (sent["id"], sent["type"], sent["function"]["name"]) == ("c1", "function", name)
    assert json.loads(sent["function"]["arguments"]).items() >= arguments.items()
    assert messages[2:] == [{"role": "tool", "tool_call_id": "c1", "content": shown}, USER]


def test_a_call_of_a_tool_that_is_no_longer_declared_is_sent_back() -> None:
    call = {"type": "function_call", "call_id": "c1", "name": "f", "namespace": "n__"}
    patch = {"type": "custom_tool_call", "call_id": "c2", "name": "p", "input": "x"}
    (turn,) = messages_of({**call, "arguments": "{}"}, patch)
    assert [c["function"] for c in turn["tool_calls"]] == [
        {"name": "n__f", "arguments": "{}"},
        {"name": "p", "arguments": '{"input":"x"}'},
    ]


def test_a_shells_output_may_name_its_call_by_its_own_id() -> None:
    action = {"type": "exec", "command": ["ls"], "env": {}}
    call = {"type": "local_shell_call", "id": "lsh_1", "call_id": "c1", "action": action}
    output = {"type": "local_shell_call_output", "id": "c1", "output": "a.txt"}
    assert messages_of(call, output)[1] == {
        "role": "tool",
        "tool_call_id": "c1",
        "content": "a.txt",
    }


def test_tools_that_a_search_found_are_offered() -> None:
    call = {"type": "tool_search_call", "call_id": "c1", "execution": "client", "arguments": {}}
    found = {"type": "tool_search_output", "call_id": "c1", "execution": "client"}
    items = [USER, call, {**found, "tools": [{**DEMO, "tools": [NOTE]}]}]
    assert list(functions_of(input=items, tools=[SEARCH])) == ["tool_search", "mcp__demo__note"]
    nothing = messages_of(USER, call, {**found, "tools": []})
    assert nothing[-1]["content"] == "Tools found: none."


def test_a_search_that_openai_did_leaves_only_its_tools() -> None:
    call = {"type": "tool_search_call", "call_id": None, "execution": "server", "arguments": {}}
    found = {"type": "tool_search_output", "call_id": None, "tools": [FUNCTION]}
    chat = chat_of(input=[call, found, USER])
    assert (chat["messages"], len(chat["tools"])) == ([USER], 1)


def test_items_without_words_for_a_chat_are_left_out() -> None:
    answer = {"role": "assistant", "content": "It rains."}
    ran = [
        {"type": "web_search_call", "id": "ws_1", "status": "completed", "action": {}},
        {"type": "file_search_call", "id": "fs_1", "queries": ["x"]},
        {"type": "code_interpreter_call", "id": "ci_1", "code": "1"},
        {"type": "mcp_list_tools", "id": "ml_1", "server_label": "s", "tools": []},
    ]
    assert messages_of(USER, *ran, answer, USER) == [USER, answer, USER]


def test_a_message_of_another_agent_is_told() -> None:
    parts = [{"type": "input_text", "text": "Done."}]
    item = {"type": "agent_message", "author": "worker", "recipient": "root", "content": parts}
    assert messages_of(item) == [
        {"role": "user", "content": "Message from the agent worker:\nDone."}
    ]
    sealed = {**item, "content": [{"type": "encrypted_content", "encrypted_content": "x"}]}
    assert parse({"input": [sealed]}).untranslatable is not None


def test_settings_in_the_input_apply() -> None:
    form = {"type": "json_object"}
    update = {"type": "configuration_update", "reasoning": {"effort": "high"}}
    later = {"type": "configuration_update", "text": {"format": form}}
    chat = chat_of(input=[USER, update, later], reasoning={"effort": "low", "summary": "auto"})
    assert (chat["reasoning_effort"], chat["response_format"]) == ("high", form)


@pytest.mark.parametrize(
    ("choice", "chosen"),
    [
        ({"type": "custom", "name": "apply_patch"}, "apply_patch"),
        ({"type": "function", "name": "wait"}, "wait"),
        ({"type": "custom", "name": "note"}, "mcp__demo__note"),
        ({"type": "function", "name": "unknown"}, "unknown"),
    ],
)
def test_a_tool_is_chosen_by_its_name(choice: dict[str, Any], chosen: str) -> None:
    chat = chat_of(tools=TOOLS, tool_choice=choice)
    assert chat["tool_choice"] == {"type": "function", "function": {"name": chosen}}


@pytest.mark.parametrize(
    ("allowed", "offered"),
    [
        ([{"type": "function", "name": "wait"}], ["wait", "mcp__demo__wait", "crm__wait"]),
        ([{"type": "custom", "name": "apply_patch"}], ["apply_patch"]),
        ([{"type": "namespace", "name": "crm"}, WEB], ["crm__wait"]),
        ([{"type": "tool_search"}, SHELL], ["tool_search", "local_shell"]),
        (
            [{"type": "namespace", "name": "functions"}],
            ["wait", "apply_patch", "tool_search", "local_shell"],
        ),
    ],
)
def test_only_allowed_tools_are_offered(allowed: list[dict[str, Any]], offered: list[str]) -> None:
    for mode in ("auto", "required"):
        choice = {"type": "allowed_tools", "mode": mode, "tools": allowed}
        assert list(functions_of(tools=TOOLS, tool_choice=choice)) == offered
        assert chat_of(tools=TOOLS, tool_choice=choice)["tool_choice"] == mode


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": [{"type": "custom"}]}, "tools[0].name"),
        ({"tools": [{**PATCH, "format": "x"}]}, "tools[0].format"),
        ({"tools": [{"type": "namespace", "name": "n"}]}, "tools[0].tools"),
        ({"tools": [{**CRM, "tools": [{"type": "function"}]}]}, "tools[0].tools[0].name"),
        ({"input": [{"type": "additional_tools"}]}, "input[0].tools"),
        ({"input": [{"type": "additional_tools", "tools": [3]}]}, "input[0].tools[0]"),
        ({"input": [{"type": "custom_tool_call", "name": "p"}]}, "input[0].input"),
        ({"input": [{"type": "local_shell_call", "call_id": "c"}]}, "input[0].action"),
        ({"input": [{"type": "configuration_update", "text": 3}]}, "input[0].text"),
        (
            {"tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": [3]}},
            "tool_choice.tools",
        ),
    ],
)
def test_a_malformed_tool_is_refused(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse({"input": "Hi", **fields})
    assert caught.value.param == param


# A custom tool's text.


def streamed_input(arguments: str, pieces: list[int]) -> tuple[list[str], str]:
    """Return the pieces of the text in the events, and the whole text."""
    places = sorted({0, len(arguments), *(place % (len(arguments) + 1) for place in pieces)})
    cuts = [arguments[a:b] for a, b in pairwise(places)]
    chunks = [ANSWER.call(0, "c1", "apply_patch"), *(ANSWER.arguments(0, cut) for cut in cuts)]
    events = events_of([*chunks, ANSWER.finish("tool_calls")], tools=[PATCH])
    deltas = [e["delta"] for e in events if e["type"].endswith("custom_tool_call_input.delta")]
    (done,) = (e["input"] for e in events if e["type"].endswith("custom_tool_call_input.done"))
    (item,) = events[-1]["response"]["output"]
    assert item["input"] == done == "".join(deltas)
    assert full_response_of(*chunks, tools=[PATCH])["output"][0]["input"] == done
    return deltas, done


@given(st.text(), st.booleans(), st.lists(st.integers(0, 10_000), max_size=20))
def test_a_custom_tool_gets_its_text(text: str, ascii_only: bool, pieces: list[int]) -> None:
    arguments = json.dumps({"input": text}, ensure_ascii=ascii_only)
    assert streamed_input(arguments, pieces)[1] == text


@given(st.text(), st.lists(st.integers(0, 10_000), max_size=20))
def test_whatever_a_model_writes_the_pieces_are_the_text(arguments: str, pieces: list[int]) -> None:
    streamed_input(arguments, pieces)
    streamed_input('{"input":"' + arguments, pieces)


def test_the_text_arrives_with_its_pieces() -> None:
    deltas, text = streamed_input('{"input":"ab\\ncd"}', [12, 13, 15])
    assert (deltas, text) == (["ab", "\nc", "d"], "ab\ncd")


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ("", ""),
        ("*** Begin Patch", "*** Begin Patch"),
        ('"quoted"', "quoted"),
        ('{"patch": "x"}', "x"),
        ('{"why": "y", "input": "x"}', "x"),
        ('{"a": "x", "b": "y"}', '{"a": "x", "b": "y"}'),
        ('{"input": ["x"]}', '{"input": ["x"]}'),
        ('{"input": "line\nline\ttab"}', "line\nline\ttab"),
        (r'{"input": "\d+\.\n"}', "\\d+\\.\n"),
        (r'{"input": "a\ud83d!"}', "a?!"),
        (r'{"input": "\ud83d\ude00"}', "😀"),
        ('{"input": "cut of', "cut of"),
        (r'{"input": "cut\u00', "cut"),
        ("[" * 100_000, "[" * 100_000),
    ],
)
def test_odd_arguments_are_read_as_they_were_meant(arguments: str, text: str) -> None:
    for pieces in ([], [*range(0, min(len(arguments), 99), 2)]):
        assert streamed_input(arguments, pieces)[1] == text


def test_a_text_that_is_cut_off_is_incomplete() -> None:
    chunks = [*call_chunks("apply_patch", '{"input":"ab')[:-1], ANSWER.finish("length")]
    response = response_of(*chunks, tools=[PATCH])
    assert response["status"] == response["output"][0]["status"] == "incomplete"
    assert response["output"][0]["input"] == "ab"


@pytest.mark.parametrize("arguments", ["", "not JSON", "[1]", '{"a": NaN}', r'{"a": "\ud83d"}'])
def test_arguments_that_are_no_object_are_empty(arguments: str) -> None:
    for name, field in (("tool_search", "arguments"), ("local_shell", "action")):
        (call,) = response_of(*call_chunks(name, arguments), tools=TOOLS)["output"]
        assert call[field] in ({}, {"type": "exec", "command": [], "env": {}})


# Names.


def test_a_name_may_come_in_pieces() -> None:
    def piece(text: str) -> Chunk:
        call = {"index": 0, "id": "c1", "function": {"name": text}}
        return {**ANSWER.text(""), "choices": [{"index": 0, "delta": {"tool_calls": [call]}}]}

    chunks = [piece("apply_"), piece("patch"), ANSWER.arguments(0, '{"input":"x"}')]
    (call,) = response_of(*chunks, ANSWER.finish("tool_calls"), tools=[PATCH])["output"]
    assert (call["type"], call["name"], call["input"]) == ("custom_tool_call", "apply_patch", "x")


def test_calls_without_arguments_keep_their_order() -> None:
    chunks = [ANSWER.call(0, "c1", "wait"), ANSWER.text("a"), ANSWER.call(1, "c2", "apply_patch")]
    output = response_of(*chunks, ANSWER.finish("tool_calls"), tools=TOOLS)["output"]
    assert [item["type"] for item in output] == ["function_call", "message", "custom_tool_call"]


WORDS = st.text("ab_", min_size=1, max_size=3)
MEMBERS = st.builds(
    lambda kind, name: {"type": kind, "name": name}, st.sampled_from(["function", "custom"]), WORDS
)
SPACES = st.builds(
    lambda name, tools: {"type": "namespace", "name": name, "description": "", "tools": tools},
    WORDS,
    st.lists(MEMBERS, max_size=4),
)


@given(st.lists(MEMBERS | SPACES, min_size=1, max_size=9))
def test_each_tool_has_its_own_name(tools: list[dict[str, Any]]) -> None:
    declared = set()
    for tool in tools:
        inside = tool.get("tools", [tool])
        space = tool["name"] if "tools" in tool else None
        declared |= {(member["type"], space, member["name"]) for member in inside}
    names = [tool["function"]["name"] for tool in chat_of(tools=tools).get("tools", [])]
    assert len(set(names)) == len(names) == len(declared)
    called = set()
    for name in names:
        (call,) = response_of(*call_chunks(name, "{}"), tools=tools)["output"]
        kind = {"function_call": "function", "custom_tool_call": "custom"}[call["type"]]
        called.add((kind, call.get("namespace"), call["name"]))
        if kind == "function":
            turn = chat_of(input=[call], tools=tools)["messages"][0]
            assert turn["tool_calls"][0]["function"]["name"] == name
    assert called == declared
