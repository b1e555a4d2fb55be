"""OpenAI's chat chunks: built, inspected, and folded into one object.

The shapes are those of OpenAI's API reference, "Chat completion chunk" and
"Chat completion object".
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from nexus_gateway.errors import ErrorEvent
from nexus_gateway.wire import json_codec
from nexus_gateway.wire.error_objects import normalise_error, read_stated

Chunk = dict[str, Any]

# What reading chunks and events of an unexpected shape raises.
MALFORMED = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError)
_GAVE_UP = "The upstream ended its answer with an error, and gave no reason."


class Answer:
    """Make the chunks of one answer; each method returns one chunk.

    Args:
        id: the answer's id, `chatcmpl-…`.
        created: Unix seconds.
        model: the value of `model`.
    """

    def __init__(self, id: str, created: int, model: str) -> None:
        self._head = {
            "id": id,
            "object": "chat.completion.chunk",
            "created": created,
            "model": model,
        }
        self._has_begun = False

    def _said(self, **fields: Any) -> Chunk:
        """A piece of the message; the first one names its role, which clients join otherwise."""
        delta = fields if self._has_begun else {"role": "assistant", **fields}
        self._has_begun = True
        return self._chunk(delta)

    def _chunk(self, delta: Chunk, finish_reason: str | None = None) -> Chunk:
        choice = {"index": 0, "delta": delta, "finish_reason": finish_reason}
        return {**self._head, "choices": [choice]}

    def text(self, text: str) -> Chunk:
        """A piece of the answer's text."""
        return self._said(content=text)

    def reasoning(self, text: str) -> Chunk:
        """A piece of the model's thinking."""
        return self._said(reasoning_content=text)

    def call(self, index: int, id: str, name: str) -> Chunk:
        """The beginning of a tool call; its arguments follow."""
        function = {"name": name, "arguments": ""}
        return self._tool({"index": index, "id": id, "type": "function", "function": function})

    def arguments(self, index: int, text: str) -> Chunk:
        """A piece of a tool call's arguments, JSON cut anywhere."""
        return self._tool({"index": index, "function": {"arguments": text}})

    def _tool(self, call: Chunk) -> Chunk:
        return self._said(tool_calls=[call])

    def finish(self, reason: str = "stop") -> Chunk:
        """The end: `stop`, `length`, `tool_calls` or `content_filter`."""
        return self._chunk({}, reason)

    def usage(
        self,
        prompt_tokens: int,
        completion_tokens: int,
        *,
        cached: int = 0,
        cache_written: int = 0,
        reasoning: int = 0,
    ) -> Chunk:
        """The usage in tokens; sent only to callers who asked for it.

        Args:
            prompt_tokens: all of the prompt, tokens from a cache included.
            completion_tokens: all of the answer, reasoning included.
            cached: those of the prompt that were read from a cache.
            cache_written: those of the prompt that were written to a cache.
            reasoning: those of the completion that were reasoning.
        """
        usage: Chunk = {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": completion_tokens,
            "total_tokens": prompt_tokens + completion_tokens,
        }
        cache = {"cached_tokens": cached, "cache_write_tokens": cache_written}
        if details := {name: tokens for name, tokens in cache.items() if tokens}:
            usage["prompt_tokens_details"] = details
        if reasoning:
            usage["completion_tokens_details"] = {"reasoning_tokens": reasoning}
        return {**self._head, "choices": [], "usage": usage}


def choices(chunk: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return a chunk's choices; none if the upstream sent something else."""
    value = chunk.get("choices")
    return [c for c in value if isinstance(c, dict)] if isinstance(value, list) else []


def extract_text(message: Mapping[str, Any]) -> str:
    """Return the text of a delta or a message: a string, or (Mistral) a list of parts.

    TypeError if it is something else, which must not be lost silently.
    """
    content = message.get("content")
    if content is not None and not isinstance(content, str | list):
        raise TypeError("the content is neither text nor parts")
    return content if isinstance(content, str) else _join_parts(content, "text")


def extract_reasoning(message: Mapping[str, Any]) -> str:
    """Return the reasoning of a delta or a message: a field of either name, or content parts."""
    for name in ("reasoning_content", "reasoning"):
        if isinstance(message.get(name), str) and message[name]:
            return str(message[name])
    return _join_parts(message.get("content"), "thinking")


def _join_parts(content: object, kind: str) -> str:
    """Join the texts of the parts of a kind, each a string or a list of further texts."""
    if not isinstance(content, list):
        return ""
    texts = [p.get(kind) for p in content if isinstance(p, dict) and p.get("type") == kind]
    return "".join(t if isinstance(t, str) else _join_parts(t, "text") for t in texts)


class ToolCallIndex:
    """Finds which of an answer's tool calls a delta belongs to.

    By its index. Some upstreams that send each call in one delta leave the index out or use the
    same one for all calls: then by its id, or because the delta is a complete call.
    """

    def __init__(self) -> None:
        self._by_index: dict[object, tuple[int, object]] = {}
        self._next = 0

    def number(self, delta: Mapping[str, Any]) -> int:
        """Return the number of a delta's call: its index, or the next free number."""
        index, id = delta.get("index"), delta.get("id")
        number, known = self._by_index.get(index, (-1, None))
        function = delta.get("function") or {}
        complete = index is None and not id and function.get("name") and function.get("arguments")
        if number < 0 or (id and known and id != known) or complete:
            number = index if number < 0 and isinstance(index, int) else self._next
        self._by_index[index] = (number, id or known)
        self._next = max(self._next, number + 1)
        return number


def joined_name(name: str, piece: object) -> str:
    """Return a function's name with its next piece, which some backends repeat in full."""
    if not isinstance(piece, str):
        return name
    return piece if piece.startswith(name) else name + piece


def arguments_text(function: Mapping[str, Any]) -> str:
    """Return a piece of a call's arguments; some backends send an object in place of its JSON."""
    arguments = function.get("arguments")
    if arguments is None or isinstance(arguments, str):
        return arguments or ""
    return json_codec.dumps(arguments).decode()


def new_id() -> str:
    """Return what makes an id unique in a conversation, for backends that give none."""
    return secrets.token_hex(12)


def has_content(chunk: Mapping[str, Any]) -> bool:
    return any(_examine(choice)[0] for choice in choices(chunk))


def finished(chunk: Mapping[str, Any]) -> bool:
    return any(_examine(choice)[1] for choice in choices(chunk))


def _examine(choice: Mapping[str, Any]) -> tuple[bool, bool]:
    """Return whether a choice has content (text, reasoning, a tool call or a finish), and a finish.

    A delta with only a role (or empty and null values beside it) is no content. The chunks of the
    older completions have their `text` in the choice itself. A finish is a text: some backends
    send an empty one with each chunk.
    """
    reason = choice.get("finish_reason")
    if reason and isinstance(reason, str):
        return True, True
    content = bool(choice.get("text"))
    delta = choice.get("delta")
    if isinstance(delta, dict):
        for name, value in delta.items():
            if value and name != "role":
                content = True
    return content, False


@dataclass(slots=True, eq=False, repr=False)
class Progress:
    """What the chunks of one answer have said of its end."""

    open: set[int] = field(default_factory=set)  # the indexes of the choices without a finish
    is_empty: bool = False  # it has ended by itself, and the first thing that came was its end
    _ended: set[int] = field(default_factory=set)
    _begun: bool = False

    @property
    def complete(self) -> bool:
        """Whether there is a choice, and each one has its finish."""
        return bool(self._ended) and not self.open

    def take(self, chunk: Mapping[str, Any]) -> tuple[bool, bool]:
        """Return whether a chunk has content, and a finish; ErrorEvent if it is an error."""
        listed = chunk.get("choices")
        if not listed or not isinstance(listed, list) or chunk.get("error"):
            raise_error(chunk, has_content=False, is_answer=_is_metadata(chunk))
            return False, False
        has_content = is_finish = False
        for choice in listed:
            if not isinstance(choice, dict):
                continue
            error, index = choice.get("error"), choice.get("index")
            if error or choice.get("finish_reason") == "error":
                raise ErrorEvent(normalise_error(error or _GAVE_UP))
            content, ends = _examine(choice)
            index = index if isinstance(index, int) else 0
            if ends:
                self._ended.add(index)
                self.open.discard(index)
            elif index not in self._ended:
                self.open.add(index)
            has_content, is_finish = has_content or content, is_finish or ends
            if content and not self._begun:
                self._begun, self.is_empty = True, ends and is_empty(choice)
        return has_content, is_finish


def is_empty(choice: Mapping[str, Any]) -> bool:
    """Whether a choice that has ended by itself says nothing."""
    if choice.get("finish_reason") != "stop" or choice.get("text"):
        return False
    said = choice.get("delta") or choice.get("message")
    if not isinstance(said, dict):
        return True
    # The usual field first, as this runs for each answer.
    return not said.get("content") and not any(v for name, v in said.items() if name != "role")


def _is_metadata(chunk: Mapping[str, Any]) -> bool:
    """Return whether a chunk without a choice is harmless.

    Known are a usage, a content filter's or a router's remarks in an otherwise ordinary chunk,
    and objects that only keep the connection alive.
    """
    return (
        not chunk
        or chunk.get("choices", 0) in (None, [])
        or isinstance(chunk.get("usage"), dict)
        or "completion" in str(chunk.get("object"))
        or chunk.get("type") == "ping"
    )


def raise_error(answer: Mapping[str, Any], *, has_content: bool, is_answer: bool = True) -> None:
    """Raise ErrorEvent if an object of an upstream is an error.

    It is one if it says so, whatever else it has; and if it has no content and instead a message,
    or nothing that an answer may have.
    """
    says_so = answer.get("error") or "error" in (answer.get("object"), answer.get("type"))
    states = not is_answer or answer.get("message") or answer.get("detail")
    if says_so or (states and not has_content):
        raise ErrorEvent(read_stated(answer))


def is_usage_only(chunk: Mapping[str, Any]) -> bool:
    """Return whether a chunk has a usage and no choices, in whatever form they are missing."""
    return not chunk.get("choices") and isinstance(chunk.get("usage"), dict)


def fold(chunks: Iterable[Chunk]) -> Chunk:
    """Fold the chunks of one answer into one `chat.completion` object.

    Texts are joined and tool calls collected by index; of any other field the last value is kept.
    Without chunks the object has no choices.
    """
    completion: Chunk = {"id": "", "object": "chat.completion", "created": 0, "model": ""}
    by_index: dict[int, Chunk] = {}
    numbers: dict[int, ToolCallIndex] = {}
    usage = None
    for chunk in chunks:
        usage = chunk["usage"] if isinstance(chunk.get("usage"), dict) else usage
        completion |= {k: v for k, v in chunk.items() if k not in ("object", "choices", "usage")}
        for choice in choices(chunk):
            _fold_choice(by_index, numbers, choice)
    completion["choices"] = [by_index[index] for index in sorted(by_index)]
    for choice in completion["choices"]:
        if calls := choice["message"].get("tool_calls"):  # by index
            for call in calls.values():
                call["id"] = call["id"] or f"call_{new_id()}"
            choice["message"]["tool_calls"] = [calls[index] for index in sorted(calls)]
    if usage:
        completion["usage"] = usage
    return completion


def _fold_choice(
    by_index: dict[int, Chunk], numbers: dict[int, ToolCallIndex], choice: Mapping[str, Any]
) -> None:
    index = choice.get("index") or 0
    calls = numbers.setdefault(index, ToolCallIndex())
    blank = {"index": index, "message": {"role": "assistant", "content": None}}
    into = by_index.setdefault(index, {**blank, "finish_reason": None})
    for key, value in choice.items():
        if key == "delta":
            _fold_delta(into["message"], calls, value if isinstance(value, dict) else {})
        elif key == "logprobs" and isinstance(value, dict):
            into["logprobs"] = _join_logprobs(into.get("logprobs"), value)
        elif key != "index" and value is not None:
            into[key] = value


def _join_logprobs(old: Chunk | None, new: Mapping[str, Any]) -> Chunk:
    old = old or {}
    return {**old, **{k: (old.get(k) or []) + v for k, v in new.items() if isinstance(v, list)}}


def _fold_delta(message: Chunk, numbers: ToolCallIndex, delta: Mapping[str, Any]) -> None:
    for key, value in delta.items():
        if key == "tool_calls" and isinstance(value, list):
            calls = message.setdefault("tool_calls", {})
            for call in value:
                _fold_call(calls, numbers.number(call), call)
        elif key != "role" and isinstance(value, str):
            message[key] = (message.get(key) or "") + value
        elif value is not None:
            message[key] = value


def _fold_call(calls: dict[int, Chunk], number: int, call: Mapping[str, Any]) -> None:
    blank = {"id": "", "type": "function", "function": {"name": "", "arguments": ""}}
    into = calls.setdefault(number, blank)
    piece, function = call.get("function") or {}, into["function"]
    name = joined_name(function["name"], piece.get("name"))
    function |= {**piece, "name": name, "arguments": function["arguments"] + arguments_text(piece)}
    into.update({k: v for k, v in call.items() if k not in ("index", "function") and v})
