"""The `input` of a Responses request, as the messages of a chat.

Items that the assistant made in one turn (a message, function calls) are one message of a chat,
and the outputs of its calls follow it directly: chat backends insist on both.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from nexus_gateway.dialects.body import optional, refuse, required
from nexus_gateway.errors import InvalidRequest

Fields = Mapping[str, Any]
Message = dict[str, Any]
Part = dict[str, Any]

# A developer message is a system message by a name that few chat backends know.
_ROLES = {"user": "user", "assistant": "assistant", "system": "system", "developer": "system"}
_BETWEEN_TEXTS = {"assistant": "", "system": "\n", "tool": "\n"}
_STAND_IN = "The output is in the next message."


class Obstacles:
    """What a request asks for that a chat cannot say; the first of it is what the caller hears.

    Attributes:
        first: as it is said, None where there is nothing.
    """

    def __init__(self) -> None:
        self.first: InvalidRequest | None = None

    def add(self, param: str, message: str) -> None:
        """Note one: the field and a sentence about it."""
        if self.first is None:
            self.first = InvalidRequest(message, param=param, code="unsupported_parameter")


class Conversation:
    """Takes the items of an input one by one.

    Args:
        obstacles: where to note what cannot be said.
    """

    def __init__(self, obstacles: Obstacles) -> None:
        self._messages: list[Message] = []
        self._added: list[str] = []
        self._obstacles = obstacles
        self._shown: list[Part] = []

    def take(self, at: str, item: object) -> None:
        """Take an item.

        Args:
            at: where it is, such as `input[0]`.
            item: any JSON value.

        Raises:
            InvalidRequest: it is malformed.
        """
        if not isinstance(item, dict):
            refuse(at, "an object", item)
        kind = optional(item, "type", str, "a string", f"{at}.")
        if kind is None and "role" in item:
            kind = "message"
        if kind in _ITEMS:
            _ITEMS[kind](self, f"{at}.", item)
        else:
            self._obstacles.add(
                f"{at}.type",
                f"Items of type {kind!r} are not supported by this gateway, which keeps no state: "
                "send messages, function calls and their outputs in full.",
            )

    def end(self) -> None:
        """Say that no output of a function follows: what such outputs show is shown now."""
        if self._shown:
            self._append({"role": "user", "content": self._shown})
            self._shown = []

    def say(self, role: str, content: str | list[Part]) -> None:
        """Add a message; what the assistant says after its calls belongs to the same turn."""
        last = self._messages[-1] if self._messages else {}
        if role == "assistant" and "tool_calls" in last:
            self._added.append(str(content))
        else:
            self._append({"role": role, "content": content})

    def _append(self, message: Message) -> None:
        self._close()
        self._messages.append(message)

    def _close(self) -> None:
        """Put together what was added to the last message, in one go however many pieces."""
        if self._added:
            last = self._messages[-1]
            last["content"] = (last["content"] or "") + "".join(self._added)
            self._added = []

    @property
    def messages(self) -> list[Message]:
        """The chat's messages, once `end` was called."""
        self._close()
        return self._messages

    def _message(self, at: str, item: Fields) -> None:
        self.end()
        role = _ROLES.get(required(item, "role", str, "a string", at))
        parts = _parts(at, "content", item, self._obstacles)
        if role is None:
            self._obstacles.add(
                f"{at}role", "A message's role must be user, assistant, system or developer."
            )
        elif role == "user":
            self.say(role, parts)
        else:
            self.say(role, self._text(at + "content", role, parts))

    def _text(self, where: str, role: str, content: str | list[Part]) -> str:
        """Return content as one string; a role that holds texts alone can hold no other part."""
        if isinstance(content, str):
            return content
        texts = [part["text"] for part in content if part["type"] == "text"]
        if len(texts) < len(content):
            self._obstacles.add(where, f"A message of the {role} can hold nothing but text here.")
        return _BETWEEN_TEXTS[role].join(texts)

    def _call(self, at: str, item: Fields) -> None:
        self.end()
        function = {name: required(item, name, str, "a string", at) for name in _FUNCTION}
        call = {"id": required(item, "call_id", str, "a string", at), "type": "function"}
        if not self._messages or self._messages[-1]["role"] != "assistant":
            self._append({"role": "assistant", "content": None})
        self._messages[-1].setdefault("tool_calls", []).append({**call, "function": function})

    def _output(self, at: str, item: Fields) -> None:
        call_id = required(item, "call_id", str, "a string", at)
        content = _parts(at, "output", item, self._obstacles)
        shown = [] if isinstance(content, str) else [p for p in content if p["type"] != "text"]
        told = content if isinstance(content, str) else [p for p in content if p["type"] == "text"]
        text = self._text(at + "output", "tool", told) or (_STAND_IN if shown else "")
        self._append({"role": "tool", "tool_call_id": call_id, "content": text})
        self._shown += shown

    def _reasoning(self, at: str, item: Fields) -> None:
        """Leave it out: it means something to the backend that made it alone."""


_FUNCTION = ("name", "arguments")
_ITEMS: Mapping[str | None, Callable[[Conversation, str, Fields], None]] = {
    "message": Conversation._message,
    "function_call": Conversation._call,
    "function_call_output": Conversation._output,
    "reasoning": Conversation._reasoning,
}


def _parts(at: str, name: str, item: Fields, obstacles: Obstacles) -> str | list[Part]:
    """Return content as a chat has it: one text as a string, anything else as parts."""
    content = item.get(name)
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        refuse(at + name, "a string or an array of parts", content)
    parts = [_part(f"{at}{name}[{i}]", part, obstacles) for i, part in enumerate(content)]
    known = [part for part in parts if part is not None]
    if len(known) == 1 and known[0]["type"] == "text":
        return str(known[0]["text"])
    return known


def _part(at: str, part: object, obstacles: Obstacles) -> Part | None:
    if not isinstance(part, dict):
        refuse(at, "an object", part)
    kind = required(part, "type", str, "a string", f"{at}.")
    if kind in _PARTS:
        return _PARTS[kind](f"{at}.", part, obstacles)
    obstacles.add(f"{at}.type", f"Content of type {kind!r} is not supported by this gateway.")
    return None


def _text_part(at: str, part: Fields, obstacles: Obstacles) -> Part:
    return {"type": "text", "text": required(part, "text", str, "a string", at)}


def _refusal_part(at: str, part: Fields, obstacles: Obstacles) -> Part:
    """Make a refusal a text: it is what the assistant said, and every backend takes a text."""
    return {"type": "text", "text": required(part, "refusal", str, "a string", at)}


def _image_part(at: str, part: Fields, obstacles: Obstacles) -> Part:
    _no_stored_file(at, part, ("file_id",), obstacles)
    read = optional if part.get("file_id") is not None else required
    image = {"url": read(part, "image_url", str, "a string", at)}
    detail = optional(part, "detail", str, "a string", at)
    return {"type": "image_url", "image_url": image | ({"detail": detail} if detail else {})}


def _file_part(at: str, part: Fields, obstacles: Obstacles) -> Part:
    elsewhere = ("file_id", "file_url")
    _no_stored_file(at, part, elsewhere, obstacles)
    read = optional if any(part.get(name) is not None for name in elsewhere) else required
    file = {"file_data": read(part, "file_data", str, "a string", at)}
    name = optional(part, "filename", str, "a string", at)
    return {"type": "file", "file": file | ({"filename": name} if name else {})}


def _no_stored_file(at: str, part: Fields, names: tuple[str, ...], obstacles: Obstacles) -> None:
    for name in names:
        if part.get(name) is not None:
            obstacles.add(
                at + name,
                f"`{name}` is not supported by this gateway, which keeps and fetches no files; "
                "send the content itself.",
            )


_PARTS: Mapping[str, Callable[[str, Fields, Obstacles], Part]] = {
    "input_text": _text_part,
    "output_text": _text_part,
    "refusal": _refusal_part,
    "input_image": _image_part,
    "input_file": _file_part,
}
