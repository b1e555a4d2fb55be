from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from nexus_gateway.wire.chunks import Answer, Progress, fold, has_content

ANSWER = Answer("chatcmpl-1", 5, "m")


@given(st.lists(st.text(min_size=1), min_size=1))
def test_text_is_joined(texts: list[str]) -> None:
    completion = fold([*map(ANSWER.text, texts), ANSWER.finish(), ANSWER.usage(2, 3)])
    assert (completion["id"], completion["object"], completion["model"]) == (
        "chatcmpl-1",
        "chat.completion",
        "m",
    )
    (choice,) = completion["choices"]
    assert choice["message"] == {"role": "assistant", "content": "".join(texts)}
    assert choice["finish_reason"] == "stop"
    assert completion["usage"]["total_tokens"] == 5


def test_tool_calls_are_grouped_by_index() -> None:
    chunks = [
        ANSWER.call(1, "b", "second"),
        ANSWER.call(0, "a", "first"),
        ANSWER.arguments(0, '{"x":'),
        ANSWER.arguments(1, "{}"),
        ANSWER.arguments(0, "1}"),
        ANSWER.finish("tool_calls"),
    ]
    message = fold(chunks)["choices"][0]["message"]
    assert message["content"] is None
    assert [(c["id"], c["type"]) for c in message["tool_calls"]] == [
        ("a", "function"),
        ("b", "function"),
    ]
    functions = [c["function"] for c in message["tool_calls"]]
    assert functions == [
        {"name": "first", "arguments": '{"x":1}'},
        {"name": "second", "arguments": "{}"},
    ]


def test_unknown_fields_are_kept() -> None:
    unknown = {"choices": [{"index": 1, "delta": {"audio": {"id": 1}}, "seed": 4}], "service": "x"}
    logs = [{"choices": [{"index": 1, "delta": {}, "logprobs": {"content": [n]}}]} for n in (1, 2)]
    completion = fold([ANSWER.reasoning("Hm"), unknown, *logs])
    first, second = completion["choices"]
    assert first["message"]["reasoning_content"] == "Hm"
    assert second["message"]["audio"] == {"id": 1}
    assert (second["seed"], completion["service"]) == (4, "x")
    assert second["logprobs"] == {"content": [1, 2]}


def test_text_reasoning_calls_and_the_finish_are_content() -> None:
    for chunk in (
        ANSWER.text("x"),
        ANSWER.reasoning("x"),
        ANSWER.call(0, "a", "f"),
        ANSWER.finish(),
    ):
        assert has_content(chunk)
    for empty in (ANSWER.text(""), ANSWER.usage(1, 1), {}, {"choices": None}, {"choices": [5]}):
        assert not has_content(empty)


def test_an_answer_is_complete_if_each_choice_that_was_seen_has_its_finish() -> None:
    first, second = (ANSWER.text("x"), {"choices": [{"index": 1, "delta": {"content": "x"}}]})
    end = {"choices": [{"index": 1, "delta": {}, "finish_reason": "stop"}]}
    progress = Progress()
    assert not progress.complete
    for chunk, complete in ((first, False), (end, False), (ANSWER.finish(), True), (first, True)):
        progress.take(chunk)
        assert progress.complete is complete
    progress.take(second)
    assert progress.complete


def test_only_a_text_is_a_finish() -> None:
    for reason in ("", None, 0, 1, True, {"x": 1}, ["stop"]):
        progress = Progress()
        chunk = {"choices": [{"index": 0, "delta": {}, "finish_reason": reason}]}
        assert progress.take(chunk) == (False, False)
        assert not progress.complete
        assert not has_content(chunk)


def test_a_name_is_joined_and_its_repetition_is_not() -> None:
    def named(*pieces: str) -> str:
        calls = [{"index": 0, "id": "c", "function": {"name": piece}} for piece in pieces]
        chunks = [{"choices": [{"index": 0, "delta": {"tool_calls": [call]}}]} for call in calls]
        (call,) = fold(chunks)["choices"][0]["message"]["tool_calls"]
        name: str = call["function"]["name"]
        return name

    assert named("ls", "ls", "ls") == "ls"
    assert named("get_", "weather") == "get_weather"
    assert named("get", "get_weather", "get_weather") == "get_weather"
    assert named("", "f", "") == "f"
