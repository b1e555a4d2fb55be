"""The tools of a request as a chat's functions, and what their calls are in the answer.

A chat has only functions. Each tool that the caller runs becomes one: a `custom` tool takes its
text in one parameter, and the tools of a namespace get its name in front of theirs. Tools that only
OpenAI can run are left out: a model need not use what it is offered.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from nexus_gateway.dialects.body import optional, required, typed
from nexus_gateway.wire import json_codec

Fields = Mapping[str, Any]

# The types of the items with a call.
FUNCTION_CALL = "function_call"
CUSTOM_CALL = "custom_tool_call"
SEARCH_CALL = "tool_search_call"
SHELL_CALL = "local_shell_call"
INPUT = "input"  # the parameter with a custom tool's text
_DEFAULT = "functions"  # what OpenAI's models call the namespace of all other tools
NAMELESS = {SEARCH_CALL: "tool_search", SHELL_CALL: "local_shell"}  # named by their type
_COMMAND = {
    "type": "object",
    "properties": {
        "command": {
            "type": "array",
            "items": {"type": "string"},
            "description": "The program and its arguments.",
        },
        "env": {"type": "object", "additionalProperties": {"type": "string"}},
        "timeout_ms": {"type": "integer"},
        "working_directory": {"type": "string"},
    },
    "required": ["command"],
}
_INPUT_HEAD = re.compile(r'\s*+\{\s*+"' + INPUT + r'"\s*+:\s*+"')
_LONGEST_HEAD = 64
# What is complete of a JSON string's inside; half a pair of surrogates waits for the other.
_COMPLETE = re.compile(
    r'(?:[^"\\]|\\(?:["\\/bfnrt]|u(?![dD][89a-fA-F])[0-9a-fA-F]{4}'
    r"|u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}))*+"
)
_ESCAPE = re.compile(r'\\(["\\/bfnrtu])?+')
_LENIENT = json.JSONDecoder(strict=False)  # takes line ends inside a string
_LONGEST_ESCAPE = len(r"\ud83d\ude00")


@dataclass(frozen=True, slots=True)
class Tool:
    """A tool as the request has it: the type of its calls, its name and its namespace."""

    call: str
    name: str
    namespace: str | None = None


@dataclass(slots=True)
class Tools:
    """Collects the tools of a request.

    Attributes:
        functions: what is offered to the model, by the names in the chat.
        named: the tools by the same names, and those that only earlier calls have.
        left_out: where the first tool is that only OpenAI can run, and its type.
    """

    functions: dict[str, dict[str, Any]] = field(default_factory=dict)
    named: dict[str, Tool] = field(default_factory=dict)
    left_out: tuple[str, str] | None = None
    _names: dict[Tool, str] = field(default_factory=dict)

    def name(self, call: str, name: str, namespace: str | None = None) -> str:
        """Return the name of a tool in the chat; tools that differ have different ones."""
        tool = Tool(call, name, None if namespace == _DEFAULT else namespace or None)
        given = self._names.get(tool)
        if given is None:
            given = f"{tool.namespace.rstrip('_')}__{name}" if tool.namespace else name
            if given in self.named:
                given = f"{given}_{_digest(tool)}"
            while given in self.named:
                given += "_"
            self._names[tool], self.named[given] = given, tool
        return given

    def find(self, call: str, name: str) -> str:
        """Return the name in the chat of a tool in any namespace."""
        found = (n for n, tool in self.named.items() if (tool.call, tool.name) == (call, name))
        return next(found, name)

    def add_all(self, where: str, tools: object) -> list[str]:
        """Add the tools of a list; return their names in the chat."""
        listed = typed(tools, list, where)
        return [name for i, tool in enumerate(listed) for name in self._add(f"{where}[{i}]", tool)]

    def keep(self, allowed: Collection[tuple[str | None, str | None]]) -> None:
        """Keep only the functions of some tools, each given by its type and its name."""

        def is_kept(tool: Tool) -> bool:
            own = {CUSTOM_CALL: ("custom", tool.name), FUNCTION_CALL: ("function", tool.name)}
            whole = ("namespace", tool.namespace or _DEFAULT)
            return own.get(tool.call, (tool.name, None)) in allowed or whole in allowed

        self.functions = {n: f for n, f in self.functions.items() if is_kept(self.named[n])}

    def _add(self, where: str, tool: object, namespace: str | None = None) -> list[str]:
        fields, at = typed(tool, dict, where), f"{where}."
        kind = required(fields, "type", str, at)
        if kind == "namespace":
            inside, names = required(fields, "name", str, at), []
            for i, member in enumerate(required(fields, "tools", list, at)):
                names += self._add(f"{at}tools[{i}]", member, inside)
            return names
        description = optional(fields, "description", str, at)
        if kind == "function":
            call, parameters = FUNCTION_CALL, optional(fields, "parameters", dict, at)
        elif kind == "custom":
            call, parameters = CUSTOM_CALL, _input_parameters()
            description = _with_grammar(description, optional(fields, "format", dict, at) or {})
        elif kind == "tool_search" and fields.get("execution") == "client":
            call, parameters = SEARCH_CALL, optional(fields, "parameters", dict, at)
        elif kind == "local_shell":
            call, parameters = SHELL_CALL, _COMMAND
            description = "Run a command in the caller's shell."
        else:
            self.left_out = self.left_out or (f"{at}type", kind)
            return []
        own = NAMELESS.get(call) or required(fields, "name", str, at)
        name = self.name(call, own, namespace)
        function = {
            "name": name,
            "description": description,
            "parameters": parameters,
            "strict": optional(fields, "strict", bool, at),
        }
        present = {key: value for key, value in function.items() if value is not None}
        self.functions[name] = {"type": "function", "function": present}
        return [name]


def _digest(tool: Tool) -> str:
    """Return what tells two tools of one name apart, in each turn alike."""
    identity = f"{tool.call} {tool.namespace} {tool.name}".encode(errors="replace")
    return hashlib.sha256(identity).hexdigest()[:8]


def _input_parameters() -> dict[str, Any]:
    text = {"type": "string", "description": "The whole input of the tool, as plain text."}
    return {
        "type": "object",
        "properties": {INPUT: text},
        "required": [INPUT],
        "additionalProperties": False,
    }


def _with_grammar(description: str | None, form: Fields) -> str | None:
    """Tell the model the grammar of a tool's input, as a chat cannot enforce it."""
    if form.get("type") != "grammar":
        return description
    head = f"The input must match this {form.get('syntax')} grammar:\n{form.get('definition')}"
    return f"{description}\n\n{head}" if description else head


def as_arguments(call: str, fields: Fields, at: str) -> str:
    """Return the arguments of an earlier call, as a chat has them."""
    if call == FUNCTION_CALL:
        return required(fields, "arguments", str, at)
    if call == CUSTOM_CALL:
        return json_codec.dumps({INPUT: required(fields, "input", str, at)}).decode()
    value = required(fields, "action" if call == SHELL_CALL else "arguments", dict, at)
    return json_codec.dumps({k: v for k, v in value.items() if k != "type"}).decode()


def as_object(arguments: str) -> dict[str, Any]:
    """Return a call's arguments; empty if the model wrote none, or something else."""
    try:
        value = json_codec.loads(arguments)
    except json_codec.JSONError:
        return {}
    return value if isinstance(value, dict) else {}


def _loaded(text: str) -> Any:
    """Return a JSON value, None if there is none; models forget to escape as JSON has it."""
    with contextlib.suppress(ValueError, RecursionError):
        return _LENIENT.decode(text)
    with contextlib.suppress(ValueError, RecursionError):
        return _LENIENT.decode(_ESCAPE.sub(lambda m: m[0] if m[1] else r"\\", text))
    return None


@dataclass(slots=True)
class InputReader:
    """Reads the text for a custom tool out of a call's arguments while they arrive."""

    _arguments: list[str] = field(default_factory=list)
    _texts: list[str] = field(default_factory=list)
    _rest: str = ""
    _is_inside: bool = False  # in the text
    _is_over: bool = False  # no more of it can be read before the end

    def feed(self, piece: str) -> str:
        """Return what is new of the text."""
        self._arguments.append(piece)
        if self._is_over:
            return ""
        self._rest += piece
        if not self._is_inside:
            head = _INPUT_HEAD.match(self._rest)
            if head is None:
                self._is_over = len(self._rest) > _LONGEST_HEAD
                return ""
            self._is_inside, self._rest = True, self._rest[head.end() :]
        match = _COMPLETE.match(self._rest)
        assert match is not None  # it may be empty
        self._rest = self._rest[match.end() :]
        self._is_over = self._rest.startswith('"') or len(self._rest) >= _LONGEST_ESCAPE
        text: str = _LENIENT.decode(f'"{match[0]}"')
        self._texts.append(text)
        return text

    def finish(self) -> tuple[str, str]:
        """Return the rest of the text, and all of it.

        Models that ignore the parameter's name, or write no JSON at all, have meant the text too.
        """
        read, arguments = "".join(self._texts), "".join(self._arguments)
        value = _loaded(arguments)
        if isinstance(value, dict):
            texts = [text for text in value.values() if isinstance(text, str)]
            value = value.get(INPUT, texts[0] if len(texts) == 1 else None)
        text = value if isinstance(value, str) else read or arguments
        text = text.encode(errors="replace").decode()  # of half a pair of surrogates
        if not text.startswith(read):
            text = read
        return text[len(read) :], text
