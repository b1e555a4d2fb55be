"""Translate a Responses request into a chat.

A feature that a chat lacks makes the request untranslatable, not invalid: a backend that offers
Responses itself may still serve it. Only a malformed body is refused at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from nexus_gateway.dialects.body import optional, required, text_or_list, typed, wrong_type
from nexus_gateway.dialects.chat import check_messages
from nexus_gateway.dialects.responses.tools import (
    CUSTOM_CALL,
    FUNCTION_CALL,
    NAMELESS,
    SEARCH_CALL,
    SHELL_CALL,
    Tool,
    Tools,
    as_arguments,
)
from nexus_gateway.errors import InvalidRequest
from nexus_gateway.wire.carried import unload_call, unload_reasoning

Fields = Mapping[str, Any]
Message = dict[str, Any]
Part = dict[str, Any]
Carried = tuple[str, dict[str, Any] | None]  # the backend's id of a call, and its `extra_content`

# Fields with the same meaning in a chat, and their names there. Only some backends of Responses
# have those of the last line.
_RENAMED = {"max_output_tokens": "max_tokens"} | {
    name: name
    for name in (
        *("temperature", "top_p", "user"),
        *("frequency_penalty", "logit_bias", "presence_penalty", "seed", "stop"),
    )
}
_TYPES: Mapping[str, type] = {
    **dict.fromkeys(("background", "parallel_tool_calls", "store", "stream"), bool),
    **dict.fromkeys(("instructions", "model", "service_tier", "truncation", "user"), str),
    **dict.fromkeys(("max_output_tokens", "top_logprobs"), int),
    **dict.fromkeys(("temperature", "top_p"), float),
    **dict.fromkeys(("include", "tools"), list),
    **dict.fromkeys(("metadata", "reasoning", "stream_options", "text"), dict),
}
# Fields that need stored state, and the values of them that do not. Any other field that is not
# translated is a hint, on which the meaning of the answer does not depend.
_STATEFUL = {
    "background": "This gateway answers only while the connection is open; send "
    "`background: false`.",
    "previous_response_id": "This gateway keeps no responses; "
    "send the whole conversation in `input` instead of `previous_response_id`.",
    "conversation": "This gateway stores no conversations; "
    "send the whole conversation in `input` instead of `conversation`.",
    "prompt": "This gateway stores no prompts; send its text in `instructions` and `input`.",
}
_STATELESS: Fields = {"background": False}
_SHELL_OUTPUT = "local_shell_call_output"
_FOUND = "tool_search_output"
_UPDATE = "configuration_update"
_LOGPROBS = "message.output_text.logprobs"
_CHOSEN = {"function": FUNCTION_CALL, "custom": CUSTOM_CALL}
_TOOL_CHOICES = frozenset({"auto", "none", "required"})
# A developer message is a system message by a name that few chat backends know.
_ROLES = {"user": "user", "assistant": "assistant", "system": "system", "developer": "system"}
# The field with the text of each part that has one; every backend accepts a refusal as a text.
_TEXT_PARTS = {"input_text": "text", "output_text": "text", "refusal": "refusal"}
# Items with a call that the caller ran, and with its output.
_CALLS = frozenset({FUNCTION_CALL, CUSTOM_CALL, SEARCH_CALL, SHELL_CALL})
_OUTPUTS = frozenset({"function_call_output", "custom_tool_call_output", _SHELL_OUTPUT, _FOUND})
# Items with tools, which are offered with those of the request; and what OpenAI did for an answer,
# which the message after it tells.
_NO_MESSAGES = frozenset(
    {
        *("additional_tools", _UPDATE, "mcp_list_tools"),
        *("code_interpreter_call", "file_search_call", "web_search_call"),
    }
)
_OUTPUT_FOLLOWS = "The output is in the next message."


class Translation(NamedTuple):
    """A request as a chat's fields; None if there is `error`, a feature that a chat lacks."""

    chat: dict[str, Any] | None
    images: bool
    images_may_go: bool  # as all are outputs of tools
    tools: Mapping[str, Tool]  # by their names in the chat
    error: InvalidRequest | None


def translate(fields: Fields, *, stream: bool) -> Translation:
    """Translate a request; InvalidRequest if it is malformed."""
    for name, kind in _TYPES.items():
        optional(fields, name, kind)
    unsupported, tools = Unsupported(), Tools()
    fields = _with_items(fields, tools)
    messages = _messages(fields, tools, unsupported)
    chat: dict[str, Any] = {"messages": messages}
    chat |= _present({new: fields.get(old) for old, new in _RENAMED.items()})
    chat |= _tools(fields, tools, unsupported) | _text(fields, unsupported)
    chat |= _reasoning(fields) | _logprobs(fields)
    if fields.get("service_tier") not in (None, "auto"):
        chat["service_tier"] = fields["service_tier"]
    if stream:
        chat["stream_options"] = {"include_usage": True}
    for name, message in _STATEFUL.items():
        if fields.get(name) not in (None, _STATELESS.get(name)):
            unsupported.add(name, message)
    images = bool(messages) and check_messages(messages)
    may_go = images and not any(map(_shows_image, fields["input"]))
    error = unsupported.error
    return Translation(None if error else chat, images, may_go, tools.named, error)


@dataclass(slots=True)
class Unsupported:
    """The first feature of a request that a chat lacks, as an error; None if there is none."""

    error: InvalidRequest | None = None

    def add(self, param: str, message: str) -> None:
        if self.error is None:
            self.error = InvalidRequest(message, param=param, code="unsupported_parameter")


def _present(fields: Fields) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}


def _with_items(fields: Fields, tools: Tools) -> Fields:
    """Add the tools of a request and of its items; return it with the settings of its items."""
    tools.add_all("tools", fields.get("tools") or [])
    items = text_or_list(fields, "input", " of items")
    for i, item in enumerate(items if isinstance(items, list) else ()):
        kind = item.get("type") if isinstance(item, dict) else None
        if kind in ("additional_tools", _FOUND):
            tools.add_all(f"input[{i}].tools", item.get("tools"))
        elif kind == _UPDATE:
            for name in ("reasoning", "text"):
                update = optional(item, name, dict, f"input[{i}].")
                fields = {**fields, name: {**(fields.get(name) or {}), **(update or {})}}
    return fields


def _messages(fields: Fields, tools: Tools, unsupported: Unsupported) -> list[Message]:
    items = text_or_list(fields, "input", " of items")
    if items == []:
        raise InvalidRequest("`input` must not be empty.", param="input")
    conversation = _Conversation(tools, unsupported, _carried(items))
    if fields.get("instructions"):
        conversation.add("system", fields["instructions"])
    if isinstance(items, str):
        conversation.add("user", items)
    else:
        for i, item in enumerate(items):
            conversation.take(f"input[{i}]", item)
        conversation.end_outputs()
    messages = conversation.finish()
    if not messages:
        unsupported.add("input", "`input` contains nothing that a model could answer.")
    return messages


def _shows_image(item: Fields) -> bool:
    """Return whether an item has an image that is not in the output of a tool."""
    content = item.get("content")
    parts = content if isinstance(content, list) else []
    return any(isinstance(p, dict) and p.get("type") == "input_image" for p in parts)


def _carried(items: str | list[Any]) -> dict[str, Carried]:
    if isinstance(items, str):
        return {}
    sealed = (item.get("encrypted_content") for item in items if isinstance(item, dict))
    return {short: call for each in sealed for short, call in (unload_call(each) or {}).items()}


@dataclass(slots=True)
class _Conversation:
    """Translates the items of an input, one by one, into a chat's messages.

    The items that the assistant made in one turn (a message, function calls) become one message,
    and the outputs of its calls follow it directly: chat backends insist on both.
    """

    _tools: Tools
    _unsupported: Unsupported
    _carried: Mapping[str, Carried]  # by the ids that the caller got
    _messages: list[Message] = field(default_factory=list)
    _more_texts: list[str] = field(default_factory=list)  # of the last message
    # Of functions' outputs, which contain only text in a chat.
    _files: list[Part] = field(default_factory=list)
    _reasoning: list[str] = field(default_factory=list)  # of the last message
    _next_reasoning: list[str] = field(default_factory=list)  # of the assistant's next item

    def take(self, where: str, item: object) -> None:
        fields, at = typed(item, dict, where), f"{where}."
        kind = optional(fields, "type", str, at)
        if kind == "message" or (kind is None and "role" in fields):
            self._message(at, fields)
        elif kind in _CALLS:
            self._call(at, kind, fields)
        elif kind in _OUTPUTS:
            self._output(at, kind, fields)
        elif kind == "reasoning":
            self._next_reasoning.append(_reasoning_text(fields))
        elif kind == "agent_message":
            self._agent_message(at, fields)
        elif kind not in _NO_MESSAGES:
            self._unsupported.add(
                f"{at}type",
                f"Items of type {kind!r} are not supported by this gateway, which keeps no state: "
                "send messages, function calls and their outputs in full.",
            )

    def add(self, role: str, content: str | list[Part]) -> None:
        """Add a message; texts of the assistant after its calls belong to the same turn."""
        if role == "assistant" and self._messages and "tool_calls" in self._messages[-1]:
            self._more_texts.append(str(content))
        else:
            self._append({"role": role, "content": content})
        self._end_reasoning()

    def end_outputs(self) -> None:
        """Add the files of the functions' outputs before, of which no more follow."""
        if self._files:
            self._append({"role": "user", "content": self._files})
            self._files = []

    def finish(self) -> list[Message]:
        """Return the messages, once no item follows."""
        self._join_texts()
        return self._messages

    def _end_reasoning(self) -> None:
        """Add the reasoning before the last item, if that was the assistant's, to its message."""
        if self._messages[-1]["role"] == "assistant":
            self._reasoning += self._next_reasoning
        self._next_reasoning = []

    def _append(self, message: Message) -> None:
        self._join_texts()
        self._messages.append(message)

    def _join_texts(self) -> None:
        """Join the texts of the last message at once, for linear time."""
        if self._more_texts:
            last = self._messages[-1]
            last["content"] = (last["content"] or "") + "".join(self._more_texts)
            self._more_texts = []
        if reasoning := "".join(self._reasoning):
            self._messages[-1]["reasoning_content"] = reasoning
        self._reasoning = []

    def _message(self, at: str, item: Fields) -> None:
        self.end_outputs()
        role = _ROLES.get(required(item, "role", str, at))
        parts = self._parts(at, "content", item)
        if role is None:
            self._unsupported.add(
                f"{at}role", "A message's role must be user, assistant, system or developer."
            )
        elif role == "user":
            self.add(role, parts)
        else:
            self.add(role, self._as_text(f"{at}content", role, parts))

    def _as_text(self, where: str, role: str, content: str | list[Part]) -> str:
        """Return the content of a role that can have only text in a chat."""
        if isinstance(content, str):
            return content
        texts = [part["text"] for part in content if part["type"] == "text"]
        if len(texts) < len(content):
            self._unsupported.add(where, f"A message of the {role} can contain only text here.")
        return ("" if role == "assistant" else "\n").join(texts)

    def _agent_message(self, at: str, item: Fields) -> None:
        """Add what another agent of the caller wrote."""
        self.end_outputs()
        author, parts = required(item, "author", str, at), self._parts(at, "content", item)
        text = self._as_text(f"{at}content", "agent", parts)
        self.add("user", f"Message from the agent {author}:\n{text}")

    def _call(self, at: str, kind: str, item: Fields) -> None:
        if kind == SEARCH_CALL and item.get("call_id") is None:
            return  # OpenAI searched itself
        self.end_outputs()
        name = NAMELESS.get(kind) or required(item, "name", str, at)
        function = {
            "name": self._tools.name(kind, name, optional(item, "namespace", str, at)),
            "arguments": as_arguments(kind, item, at),
        }
        short = required(item, "call_id", str, at)
        id, extra = self._carried.get(short, (short, None))
        call: dict[str, Any] = {"id": id, "type": "function", "function": function}
        if extra:
            call["extra_content"] = extra
        if not self._messages or self._messages[-1]["role"] != "assistant":
            self._append({"role": "assistant", "content": None})
        self._messages[-1].setdefault("tool_calls", []).append(call)
        self._end_reasoning()

    def _output(self, at: str, kind: str, item: Fields) -> None:
        content: str | list[Part]
        if kind == _FOUND:
            if item.get("call_id") is None:
                return
            names = self._tools.add_all(f"{at}tools", item.get("tools"))
            content = f"Tools found: {', '.join(names) or 'none'}."
        else:
            content = self._parts(at, "output", item)
        # A shell's output may have only an id, which is its call's.
        name = "id" if kind == _SHELL_OUTPUT and item.get("call_id") is None else "call_id"
        short = required(item, name, str, at)
        call_id, _ = self._carried.get(short, (short, None))
        if isinstance(content, list):
            files = [part for part in content if part["type"] != "text"]
            text = "\n".join(part["text"] for part in content if part["type"] == "text")
            content = text or (_OUTPUT_FOLLOWS if files else "")
            self._files += files
        self._append({"role": "tool", "tool_call_id": call_id, "content": content})

    def _parts(self, at: str, name: str, item: Fields) -> str | list[Part]:
        """Return content as a chat has it: a single text as a string, anything else as parts."""
        content = item.get(name)
        if isinstance(content, str):
            return content
        if not isinstance(content, list):
            wrong_type(at + name, "a string or an array of parts", content)
        parts = [self._part(f"{at}{name}[{i}]", part) for i, part in enumerate(content)]
        supported = [part for part in parts if part is not None]
        if len(supported) == 1 and supported[0]["type"] == "text":
            return str(supported[0]["text"])
        return supported

    def _part(self, where: str, part: object) -> Part | None:
        fields, at = typed(part, dict, where), f"{where}."
        kind = required(fields, "type", str, at)
        if kind in _TEXT_PARTS:
            return {"type": "text", "text": required(fields, _TEXT_PARTS[kind], str, at)}
        if kind == "input_image":
            url = self._content(at, fields, "image_url", ("file_id",))
            detail = optional(fields, "detail", str, at)
            image = {"url": url, **({"detail": detail} if detail else {})}
            return {"type": "image_url", "image_url": image}
        if kind == "input_file":
            data = self._content(at, fields, "file_data", ("file_id", "file_url"))
            name = optional(fields, "filename", str, at)
            file = {"file_data": data, **({"filename": name} if name else {})}
            return {"type": "file", "file": file}
        self._unsupported.add(
            f"{at}type", f"Content of type {kind!r} is not supported by this gateway."
        )
        return None

    def _content(self, at: str, part: Fields, name: str, elsewhere: tuple[str, ...]) -> str | None:
        """Return the field with a part's content; unsupported if that is stored elsewhere."""
        stored = [other for other in elsewhere if part.get(other) is not None]
        for other in stored:
            self._unsupported.add(
                at + other,
                f"`{other}` is not supported by this gateway, which keeps and fetches no files; "
                "send the content itself.",
            )
        return optional(part, name, str, at) if stored else required(part, name, str, at)


def _reasoning_text(item: Fields) -> str:
    """Return the text of a reasoning item, if it has one that is not encrypted by a backend."""
    texts = _texts(item.get("content"))
    return texts or unload_reasoning(item.get("encrypted_content")) or _texts(item.get("summary"))


def _texts(parts: object) -> str:
    parts = parts if isinstance(parts, list) else []
    return "".join(str(p.get("text") or "") for p in parts if isinstance(p, dict))


def _tools(fields: Fields, tools: Tools, unsupported: Unsupported) -> dict[str, Any]:
    """Translate the fields about tools; chat backends refuse a choice without tools."""
    choice = _tool_choice(fields.get("tool_choice"), tools, unsupported)
    if not tools.functions:
        if choice == "required" and tools.left_out:
            where, kind = tools.left_out
            unsupported.add(
                where,
                f"Tools of type {kind!r} run at OpenAI and not in this gateway, so none can be "
                "required; describe your own functions with the type 'function'.",
            )
        return {} if choice in (None, "auto", "none") else {"tool_choice": choice}
    parallel, functions = fields.get("parallel_tool_calls"), list(tools.functions.values())
    return _present({"tools": functions, "tool_choice": choice, "parallel_tool_calls": parallel})


def _tool_choice(choice: object, tools: Tools, unsupported: Unsupported) -> object:
    if choice is None or (isinstance(choice, str) and choice in _TOOL_CHOICES):
        return choice
    if not isinstance(choice, (str, dict)):
        wrong_type("tool_choice", "a string or an object", choice)
    if isinstance(choice, dict):
        at = "tool_choice."
        call = _CHOSEN.get(str(choice.get("type")))
        if call is not None:
            name = tools.find(call, required(choice, "name", str, at))
            return {"type": "function", "function": {"name": name}}
        if choice.get("type") == "allowed_tools":
            tools.keep({_allowed(entry) for entry in required(choice, "tools", list, at)})
            mode = required(choice, "mode", str, at)
            if tools.functions or mode != "required":
                return mode
    unsupported.add(
        "tool_choice",
        "This `tool_choice` is not supported by this gateway; use 'auto', 'none', 'required' or "
        "name tools of your own.",
    )
    return None


def _allowed(entry: object) -> tuple[str | None, str | None]:
    """Return the type and the name of a tool in `allowed_tools`."""
    at = "tool_choice.tools"
    fields = typed(entry, dict, at)
    return optional(fields, "type", str, f"{at}."), optional(fields, "name", str, f"{at}.")


def _text(fields: Fields, unsupported: Unsupported) -> dict[str, Any]:
    text = fields.get("text") or {}
    response_format = _response_format(text, unsupported)
    verbosity = optional(text, "verbosity", str, "text.")
    return _present({"response_format": response_format, "verbosity": verbosity})


def _response_format(text: Fields, unsupported: Unsupported) -> dict[str, Any] | None:
    form = optional(text, "format", dict, "text.") or {"type": "text"}
    at = "text.format."
    kind = required(form, "type", str, at)
    if kind == "json_object":
        return {"type": kind}
    if kind == "json_schema":
        schema = {
            "name": required(form, "name", str, at),
            "description": optional(form, "description", str, at),
            "schema": required(form, "schema", dict, at),
            "strict": optional(form, "strict", bool, at),
        }
        return {"type": kind, kind: _present(schema)}
    if kind != "text":
        unsupported.add(
            f"{at}type",
            f"The format {kind!r} is not supported by this gateway; use 'text', 'json_object' or "
            "'json_schema'.",
        )
    return None


def _reasoning(fields: Fields) -> dict[str, Any]:
    reasoning = fields.get("reasoning") or {}
    return _present({"reasoning_effort": optional(reasoning, "effort", str, "reasoning.")})


def _logprobs(fields: Fields) -> dict[str, Any]:
    include = fields.get("include") or []
    for entry in include:
        if not isinstance(entry, str):
            wrong_type("include", "an array of strings", entry)
    top = fields.get("top_logprobs") or None  # zero is OpenAI's default
    wanted = True if top or _LOGPROBS in include else None
    return _present({"logprobs": wanted, "top_logprobs": top})
