"""A Responses request, as a chat.

What a chat cannot say is an obstacle, not an error: a backend that speaks this dialect itself
may still take the request. Only a malformed body is refused at once.

The `input` of a Responses request, as the messages of a chat.

Items that the assistant made in one turn (a message, function calls) are one message of a chat,
and the outputs of its calls follow it directly: chat backends insist on both.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass
from numbers import Real
from typing import Any

from nexus_gateway.dialects.body import optional, required, wrong_type
from nexus_gateway.dialects.chat import check_messages
from nexus_gateway.errors import InvalidRequest

Fields = Mapping[str, Any]
Message = dict[str, Any]
Part = dict[str, Any]

# A developer message is a system message by a name that few chat backends know.
_ROLES = {"user": "user", "assistant": "assistant", "system": "system", "developer": "system"}
_BETWEEN_TEXTS = {"assistant": "", "system": "\n", "tool": "\n"}
_STAND_IN = "The output is in the next message."


class Unsupported:
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

    def __init__(self, obstacles: Unsupported) -> None:
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
            wrong_type(at, "an object", item)
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


def _parts(at: str, name: str, item: Fields, obstacles: Unsupported) -> str | list[Part]:
    """Return content as a chat has it: one text as a string, anything else as parts."""
    content = item.get(name)
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        wrong_type(at + name, "a string or an array of parts", content)
    parts = [_part(f"{at}{name}[{i}]", part, obstacles) for i, part in enumerate(content)]
    known = [part for part in parts if part is not None]
    if len(known) == 1 and known[0]["type"] == "text":
        return str(known[0]["text"])
    return known


def _part(at: str, part: object, obstacles: Unsupported) -> Part | None:
    if not isinstance(part, dict):
        wrong_type(at, "an object", part)
    kind = required(part, "type", str, "a string", f"{at}.")
    if kind in _PARTS:
        return _PARTS[kind](f"{at}.", part, obstacles)
    obstacles.add(f"{at}.type", f"Content of type {kind!r} is not supported by this gateway.")
    return None


def _text_part(at: str, part: Fields, obstacles: Unsupported) -> Part:
    return {"type": "text", "text": required(part, "text", str, "a string", at)}


def _refusal_part(at: str, part: Fields, obstacles: Unsupported) -> Part:
    """Make a refusal a text: it is what the assistant said, and every backend takes a text."""
    return {"type": "text", "text": required(part, "refusal", str, "a string", at)}


def _image_part(at: str, part: Fields, obstacles: Unsupported) -> Part:
    _no_stored_file(at, part, ("file_id",), obstacles)
    read = optional if part.get("file_id") is not None else required
    image = {"url": read(part, "image_url", str, "a string", at)}
    detail = optional(part, "detail", str, "a string", at)
    return {"type": "image_url", "image_url": image | ({"detail": detail} if detail else {})}


def _file_part(at: str, part: Fields, obstacles: Unsupported) -> Part:
    elsewhere = ("file_id", "file_url")
    _no_stored_file(at, part, elsewhere, obstacles)
    read = optional if any(part.get(name) is not None for name in elsewhere) else required
    file = {"file_data": read(part, "file_data", str, "a string", at)}
    name = optional(part, "filename", str, "a string", at)
    return {"type": "file", "file": file | ({"filename": name} if name else {})}


def _no_stored_file(at: str, part: Fields, names: tuple[str, ...], obstacles: Unsupported) -> None:
    for name in names:
        if part.get(name) is not None:
            obstacles.add(
                at + name,
                f"`{name}` is not supported by this gateway, which keeps and fetches no files; "
                "send the content itself.",
            )


_PARTS: Mapping[str, Callable[[str, Fields, Unsupported], Part]] = {
    "input_text": _text_part,
    "output_text": _text_part,
    "refusal": _refusal_part,
    "input_image": _image_part,
    "input_file": _file_part,
}

_TEXT = (str, "a string")
_NUMBER = (Real, "a number")
_WHOLE = (int, "a whole number")
_YES_NO = (bool, "true or false")
_OBJECT = (dict, "an object")
_LIST = (list, "an array")

# Fields that a chat has as well, and by which name.
_SAME = {
    "max_output_tokens": ("max_tokens", _WHOLE),
    "temperature": ("temperature", _NUMBER),
    "top_p": ("top_p", _NUMBER),
    "user": ("user", _TEXT),
}
# Hints that change no answer, and that some backends would refuse.
_HINTS = frozenset(
    {
        "client_metadata",
        "prompt_cache_key",
        "prompt_cache_options",
        "prompt_cache_retention",
        "safety_identifier",
    }
)
# Fields that are looked at by themselves, and what they must be.
_OWN = {
    "background": _YES_NO,
    "include": _LIST,
    "instructions": _TEXT,
    "metadata": _OBJECT,
    "model": _TEXT,
    "parallel_tool_calls": _YES_NO,
    "reasoning": _OBJECT,
    "service_tier": _TEXT,
    "store": _YES_NO,
    "stream": _YES_NO,
    "stream_options": _OBJECT,
    "text": _OBJECT,
    "tools": _LIST,
    "top_logprobs": _WHOLE,
    "truncation": _TEXT,
}
_KNOWN = {"input", "tool_choice", *_HINTS, *_SAME, *_OWN}
# Values that ask for nothing.
_HARMLESS: Mapping[str, object] = {"store": False, "background": False, "truncation": "disabled"}
_STATELESS = {
    "store": "This gateway stores no responses; send `store: false`.",
    "background": "This gateway answers while you wait; send `background: false`.",
    "truncation": "This gateway shortens no conversation; send `truncation: disabled`.",
    "previous_response_id": "This gateway stores no responses; "
    "send the whole conversation in `input` instead of `previous_response_id`.",
    "conversation": "This gateway stores no conversations; "
    "send the whole conversation in `input` instead of `conversation`.",
    "prompt": "This gateway stores no prompts; send its text in `instructions` and `input`.",
    "max_tool_calls": "This gateway runs no tools, so `max_tool_calls` has nothing to limit; "
    "remove it.",
}
_LOGPROBS = "message.output_text.logprobs"
_INCLUDABLE = frozenset({"reasoning.encrypted_content", _LOGPROBS})
_TEXT_FIELDS = frozenset({"format", "verbosity"})
# How reasoning is summed up or remembered is the backend's own affair.
_REASONING_FIELDS = frozenset({"effort", "summary", "generate_summary", "context"})
_CHOICES = frozenset({"auto", "none", "required"})


@dataclass(frozen=True, slots=True)
class Translation:
    """A request as a chat.

    Args:
        chat: the chat's body; None where there is an obstacle.
        images: whether it holds an image.
        obstacle: what a chat cannot say.
    """

    chat: dict[str, Any] | None
    images: bool
    obstacle: InvalidRequest | None


def translate(fields: Fields, *, stream: bool) -> Translation:
    """Put the fields of a request into a chat; they are left as they are.

    Raises:
        InvalidRequest: they are malformed.
    """
    for name, (kind, words) in _OWN.items():
        optional(fields, name, kind, words)
    obstacles = Unsupported()
    messages = _messages(fields, obstacles)
    chat: dict[str, Any] = {"messages": messages}
    chat |= _same(fields) | _tools(fields, obstacles) | _text(fields, obstacles)
    chat |= _reasoning(fields, obstacles) | _logprobs(fields, obstacles)
    if fields.get("service_tier") not in (None, "auto"):
        chat["service_tier"] = fields["service_tier"]
    if stream:
        chat["stream_options"] = {"include_usage": True}
    _refuse_state(fields, obstacles)
    images = bool(messages) and check_messages(messages)
    return Translation(None if obstacles.first else chat, images, obstacles.first)


def _messages(fields: Fields, obstacles: Unsupported) -> list[Message]:
    asked = fields.get("input")
    if asked is None:
        raise InvalidRequest("The field `input` is missing.", param="input")
    if not isinstance(asked, (str, list)):
        wrong_type("input", "a string or an array of items", asked)
    if asked == []:
        raise InvalidRequest("`input` must not be empty.", param="input")
    conversation = Conversation(obstacles)
    if fields.get("instructions"):
        conversation.say("system", fields["instructions"])
    if isinstance(asked, str):
        conversation.say("user", asked)
    else:
        for i, item in enumerate(asked):
            conversation.take(f"input[{i}]", item)
        conversation.end()
    if not conversation.messages:
        obstacles.add("input", "`input` holds nothing that a model could answer.")
    return conversation.messages


def _same(fields: Fields) -> dict[str, Any]:
    read = {
        name: optional(fields, theirs, kind, words)
        for theirs, (name, (kind, words)) in _SAME.items()
    }
    return _present(read)


def _present(fields: Fields) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}


def _tools(fields: Fields, obstacles: Unsupported) -> dict[str, Any]:
    """Return `tools` and what goes with them; chat backends refuse a choice among no tools."""
    tools = [
        _tool(f"tools[{i}]", tool, obstacles) for i, tool in enumerate(fields.get("tools") or [])
    ]
    choice = _tool_choice(fields.get("tool_choice"), obstacles)
    if not tools:
        return {} if choice in (None, "auto", "none") else {"tool_choice": choice}
    parallel = fields.get("parallel_tool_calls")
    return _present({"tools": tools, "tool_choice": choice, "parallel_tool_calls": parallel})


def _tool(at: str, tool: object, obstacles: Unsupported) -> dict[str, Any] | None:
    if not isinstance(tool, dict):
        wrong_type(at, "an object", tool)
    kind = required(tool, "type", str, "a string", f"{at}.")
    if kind != "function":
        obstacles.add(
            f"{at}.type",
            f"Tools of type {kind!r} are not supported by this gateway; describe your own "
            "functions with the type 'function'.",
        )
        return None
    function = {
        "name": required(tool, "name", str, "a string", f"{at}."),
        "description": optional(tool, "description", str, "a string", f"{at}."),
        "parameters": optional(tool, "parameters", dict, "an object", f"{at}."),
        "strict": optional(tool, "strict", bool, "true or false", f"{at}."),
    }
    return {"type": "function", "function": _present(function)}


def _tool_choice(choice: object, obstacles: Unsupported) -> object:
    if choice is None or (isinstance(choice, str) and choice in _CHOICES):
        return choice
    if not isinstance(choice, (str, dict)):
        wrong_type("tool_choice", "a string or an object", choice)
    if isinstance(choice, dict) and choice.get("type") == "function":
        name = required(choice, "name", str, "a string", "tool_choice.")
        return {"type": "function", "function": {"name": name}}
    obstacles.add(
        "tool_choice",
        "This `tool_choice` is not supported by this gateway; say 'auto', 'none', 'required' or "
        "name one function.",
    )
    return None


def _text(fields: Fields, obstacles: Unsupported) -> dict[str, Any]:
    text = fields.get("text") or {}
    _refuse_others(text, _TEXT_FIELDS, "text.", obstacles)
    return _present(
        {
            "response_format": _format(text, obstacles),
            "verbosity": optional(text, "verbosity", str, "a string", "text."),
        }
    )


def _format(text: Fields, obstacles: Unsupported) -> dict[str, Any] | None:
    form = optional(text, "format", dict, "an object", "text.") or {"type": "text"}
    at = "text.format."
    kind = required(form, "type", str, "a string", at)
    if kind == "json_object":
        return {"type": kind}
    if kind == "json_schema":
        schema = {
            "name": required(form, "name", str, "a string", at),
            "description": optional(form, "description", str, "a string", at),
            "schema": required(form, "schema", dict, "an object", at),
            "strict": optional(form, "strict", bool, "true or false", at),
        }
        return {"type": kind, kind: _present(schema)}
    if kind != "text":
        obstacles.add(
            f"{at}type",
            f"The format {kind!r} is not supported by this gateway; use 'text', 'json_object' or "
            "'json_schema'.",
        )
    return None


def _reasoning(fields: Fields, obstacles: Unsupported) -> dict[str, Any]:
    reasoning = fields.get("reasoning") or {}
    _refuse_others(reasoning, _REASONING_FIELDS, "reasoning.", obstacles)
    effort = optional(reasoning, "effort", str, "a string", "reasoning.")
    return _present({"reasoning_effort": effort})


def _logprobs(fields: Fields, obstacles: Unsupported) -> dict[str, Any]:
    include = fields.get("include") or []
    for entry in include:
        if not isinstance(entry, str):
            wrong_type("include", "an array of strings", entry)
        if entry not in _INCLUDABLE:
            obstacles.add("include", f"{entry!r} cannot be included by this gateway; remove it.")
    # Zero is how OpenAI's own responses say that nobody asked.
    top = fields.get("top_logprobs") or None
    return _present(
        {"logprobs": True if top or _LOGPROBS in include else None, "top_logprobs": top}
    )


def _refuse_state(fields: Fields, obstacles: Unsupported) -> None:
    """Note what needs a memory, and whatever is unknown."""
    for name, sentence in _STATELESS.items():
        if fields.get(name) not in (None, _HARMLESS.get(name)):
            obstacles.add(name, sentence)
    _refuse_others(fields, _KNOWN | _STATELESS.keys(), "", obstacles)


def _refuse_others(fields: Fields, known: Set[str], at: str, obstacles: Unsupported) -> None:
    for name in _present(fields):
        if name not in known:
            message = f"`{at}{name}` is not supported by this gateway; remove it."
            obstacles.add(at + name, message)
