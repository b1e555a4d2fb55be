"""Changes to a chat that a backend needs, as data: a provider lists them in its `adaptations`.

The inner form of every request is OpenAI's chat. It may contain more than OpenAI's reference: the
reasoning of earlier turns (`reasoning_content`), Anthropic's marks for its cache (`cache_control`),
and signatures of tool calls (`extra_content`). Most backends refuse what they do not know, and some
insist on it.

Each adaptation is pure, and applying it twice changes nothing more. It returns the chat that it was
given if there is nothing to change, so that the caller's own bytes can be sent. A chat is shared
between attempts and never changed itself.

Only one of them changes what the answer means: `ToolNames`, whose names `restore_names` takes back.
"""

from __future__ import annotations

import hashlib
import itertools
import re
import string
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from operator import is_
from typing import Any

from nexus_gateway.wire.chunks import extract_reasoning

Object = Mapping[str, Any]
Chat = Object
Names = tuple[str, ...] | frozenset[str]  # no string, which is a collection of its letters

# The fields of OpenAI's reference, "Create chat completion".
_MESSAGE = frozenset(
    {
        *("role", "content", "name", "refusal", "audio"),
        *("tool_calls", "tool_call_id", "function_call"),
    }
)
_CALL = frozenset({"id", "type", "function", "custom"})
_TOOL = frozenset({"type", "function"})
_PARTS = ("text", "refusal", "image_url", "input_audio", "file")
_REASONING = frozenset({"reasoning_content", "reasoning"})
_SYSTEM_ROLES = ("system", "developer")
# Of an answer: of a chat or a Messages request, of a chat, of a Responses request.
_LENGTHS = ("max_tokens", "max_completion_tokens", "max_output_tokens")
_LETTERS_AND_DIGITS = string.ascii_letters + string.digits
_NOT_IN_NAMES = re.compile(r"[^a-zA-Z0-9_-]")
_NO_FIRST = re.compile(r"^(?=[^a-zA-Z_])")  # names begin with a letter or `_`
_NAME_DIGEST = 8
_NAMED = ("function", "custom")
_EFFORT = "reasoning_effort"
# By their size; `default`, the model's own, is Groq's.
_EFFORTS = {
    **{"none": 0, "minimal": 1, "low": 2, "medium": 3, "default": 3},
    **{"high": 4, "xhigh": 5, "max": 6},
}
_IMAGES = frozenset({"image_url", "input_image", "image"})
_IMAGE_LEFT_OUT = {"type": "text", "text": "(An image was left out: this model takes none.)"}
# Where a schema has values of the tool's own, which may look like schemas.
_VALUES = frozenset({"const", "default", "enum", "example", "examples"})


class Adaptation(ABC):
    """A change to a chat that a backend needs."""

    @abstractmethod
    def adapt(self, chat: Chat) -> Chat:
        """Return the chat as the backend takes it; the given one if there is nothing to change.

        Args:
            chat: in OpenAI's shape; its messages are objects with a role, and anything else in them
                may be of any type.
        """


@dataclass(frozen=True)
class RenameFields(Adaptation):
    """Rename fields of the body; if the new name is present already, its value is kept.

    Args:
        names: the new name of each old one.
    """

    names: Mapping[str, str]

    def adapt(self, chat: Chat) -> Chat:
        return rename_fields(chat, **self.names)


@dataclass(frozen=True)
class DropFields(Adaptation):
    """Remove fields of the body.

    Args:
        names: hints, which do not change what the answer means.
    """

    names: Names

    def adapt(self, chat: Chat) -> Chat:
        return drop_fields(chat, *self.names)


@dataclass(frozen=True)
class RenameRoles(Adaptation):
    """Rename the roles of messages.

    Args:
        roles: the new role of each old one.
    """

    roles: Mapping[str, str]

    def adapt(self, chat: Chat) -> Chat:
        return rename_roles(chat, **self.roles)


@dataclass(frozen=True)
class KnownFields(Adaptation):
    """Keep only what OpenAI's reference has in messages, their parts and calls, and in tools.

    A field that is null is removed as well, as strict backends refuse even that. Texts that were in
    parts only because one was marked become one string again.

    Args:
        also: fields that the backend takes in addition, wherever they stand; `thinking` keeps parts
            of that type.
        without: fields of a message that OpenAI has and the backend refuses. The text of a refusal
            is then kept as the content.
    """

    also: Names = ()
    without: Names = ()

    @cached_property
    def _known(self) -> frozenset[str]:
        return _MESSAGE.difference(self.without).union(self.also)

    def adapt(self, chat: Chat) -> Chat:
        return _change_each(_change_each(chat, "messages", self._message), "tools", self._tool)

    def _message(self, message: Object) -> Object:
        known, refusal = self._known, message.get("refusal")
        kept = {
            name: value
            for name, value in message.items()
            if name in known and (value is not None or name == "content")
        }
        if refusal and "refusal" not in kept and not kept.get("content"):
            kept["content"] = refusal
        same = kept.keys() == message.keys()
        return self._content(_change_each(message if same else kept, "tool_calls", self._call))

    def _content(self, message: Object) -> Object:
        parts = message.get("content")
        if not isinstance(parts, list):
            return message
        kept = [self._part(part) for part in parts if not self._is_unknown(part)]
        if len(kept) == len(parts) and all(map(is_, kept, parts)):
            return message
        texts = [text for part in kept if (text := _lone_text(part)) is not None]
        joined = len(texts) == len(kept) and (len(kept) < 2 or message.get("role") != "user")
        return {**message, "content": "".join(texts) if joined else kept}

    def _is_unknown(self, part: object) -> bool:
        is_thinking = isinstance(part, dict) and part.get("type") == "thinking"
        return is_thinking and "thinking" not in self.also

    def _part(self, part: object) -> object:
        if isinstance(part, dict) and part.get("type") in _PARTS:
            return self._keep(part, ("type", part["type"]))
        return part

    def _call(self, call: Object) -> Object:
        return self._keep(call, _CALL)

    def _tool(self, tool: Object) -> Object:
        return self._keep(tool, _TOOL) if tool.get("type") == "function" else tool

    def _keep(self, holder: Object, known: Collection[str]) -> Object:
        if all(name in known or name in self.also for name in holder):
            return holder
        return {k: v for k, v in holder.items() if k in known or k in self.also}


@dataclass(frozen=True)
class Reasoning(Adaptation):
    """Give the reasoning of earlier turns back, whatever field or part it was in.

    Args:
        field: the backend's name of it. `KnownFields` must keep that as well.
        missing: what the assistant's turns without reasoning get in a chat with tool calls, for
            backends that refuse them. Other models made such turns, or the caller lost it.
    """

    field: str = "reasoning_content"
    missing: str = ""

    def adapt(self, chat: Chat) -> Chat:
        missing = self.missing if any(map(_calls, _messages(chat))) else ""
        return _change_each(chat, "messages", lambda m: self._message(m, missing))

    def _message(self, message: Object, missing: str) -> Object:
        if message.get("role") != "assistant":
            return message
        text = extract_reasoning(message) or missing
        wanted = {self.field: text} if text else {}
        if {k: v for k, v in message.items() if k in _REASONING} == wanted:
            return message
        return {**{k: v for k, v in message.items() if k not in _REASONING}, **wanted}


@dataclass(frozen=True)
class CallIds(Adaptation):
    """Give tool calls ids that the backend accepts, and their results the same ones.

    An id that fits stays. Another one is replaced by a digest of it; if that is in use already, by
    the next digest. Ids are taken in the order of the conversation, so the next turn maps those
    before it to the same ids.

    Args:
        fits: a regular expression of whole ids that the backend accepts; among them all texts of
            `length` letters and digits.
        length: of the new ids.
    """

    fits: str
    length: int

    def adapt(self, chat: Chat) -> Chat:
        given: dict[str, str] = {}
        taken: set[str] = set()
        for id in _call_ids(chat):
            if id not in given:
                fitting = [id] if re.fullmatch(self.fits, id) else []
                candidates = itertools.chain(fitting, _digests(id, self.length))
                given[id] = next(new for new in candidates if new not in taken)
                taken.add(given[id])

        def call(holder: Object) -> Object:
            return _renamed(holder, "id", given)

        def message(holder: Object) -> Object:
            return _change_each(_renamed(holder, "tool_call_id", given), "tool_calls", call)

        return _change_each(chat, "messages", message)


@dataclass(frozen=True)
class ToolNames(Adaptation):
    """Give tools names that the backend accepts; the caller gets its own back.

    A name that fits stays. Another one is cut, and ends in a digest of the whole.

    Args:
        fits: a regular expression of whole names that the backend accepts; among them all up to
            `length` letters, digits, `_` and `-` that begin with a letter or `_`.
        length: of the longest name.
    """

    fits: str
    length: int

    def adapt(self, chat: Chat) -> Chat:
        given = self.renamed(chat)
        if not given:
            return chat

        def call(holder: Object) -> Object:
            return _with_names(holder, given)

        def message(holder: Object) -> Object:
            if holder.get("role") == "tool":
                holder = _renamed(holder, "name", given)
            return _change_each(holder, "tool_calls", call)

        def choice(holder: Object) -> Object:
            allowed = _change_in(holder, "allowed_tools", lambda a: _change_each(a, "tools", call))
            return _with_names(allowed, given)

        chat = _change_each(_change_each(chat, "tools", call), "messages", message)
        return _change_in(chat, "tool_choice", choice)

    def renamed(self, chat: Chat) -> dict[str, str]:
        """Return the new name of each tool in a chat whose name does not fit."""
        fits, names = re.compile(self.fits), set(_tool_names(chat))
        misfits = [name for name in names if not fits.fullmatch(name)]
        if not misfits:
            return {}
        taken, given = names.difference(misfits), dict[str, str]()
        for name in sorted(misfits):
            start = _NO_FIRST.sub("_", _NOT_IN_NAMES.sub("_", name))
            start = start[: self.length - _NAME_DIGEST - 1]
            candidates = (f"{start}_{digest}" for digest in _digests(name, _NAME_DIGEST))
            given[name] = next(new for new in candidates if new not in taken)
            taken.add(given[name])
        return given


@dataclass(frozen=True)
class WholeSchemas(Adaptation):
    """Give objects without `properties` in the schemas of tools empty ones, which mean the same."""

    def adapt(self, chat: Chat) -> Chat:
        def function(holder: Object) -> Object:
            return _change_in(holder, "parameters", self._whole)

        return _change_each(chat, "tools", lambda tool: _change_in(tool, "function", function))

    def _whole(self, schema: Object) -> Object:
        new = {
            name: value if name in _VALUES else self._each(value) for name, value in schema.items()
        }
        if schema.get("type") == "object" and "properties" not in schema:
            return {**new, "properties": {}}
        return schema if all(map(is_, new.values(), schema.values())) else new

    def _each(self, value: Any) -> Any:
        if isinstance(value, dict):
            return self._whole(value)
        if not isinstance(value, list):
            return value
        new = [self._each(item) for item in value]
        return value if all(map(is_, new, value)) else new


@dataclass(frozen=True)
class Effort(Adaptation):
    """Ask for an effort of reasoning that the model takes: the nearest, of two the larger.

    A caller of another dialect may only hint at it: a backend without this never gets such a hint.

    Args:
        taken: the efforts that models take, by a regular expression of their whole names, of which
            the first that matches counts. For other models the effort is left out.
    """

    taken: Mapping[str, Sequence[str]]

    def adapt(self, chat: Chat) -> Chat:
        if _EFFORT not in chat:
            return chat
        effort, model = chat[_EFFORT], str(chat.get("model"))
        taken = next((t for names, t in self.taken.items() if re.fullmatch(names, model)), None)
        if taken is None:
            return drop_fields(chat, _EFFORT)
        size = _EFFORTS.get(effort) if isinstance(effort, str) else None
        if size is None or effort in taken:
            return chat
        nearest = min(taken, key=lambda name: (abs(_EFFORTS[name] - size), -_EFFORTS[name]))
        return {**chat, _EFFORT: nearest}


@dataclass(frozen=True)
class CallSignatures(Adaptation):
    """Mark tool calls that the backend did not make itself, if it refuses those without signature.

    A message with a signature is the backend's own, and stays as it is.

    Args:
        path: the names that lead from a call to its signature. `KnownFields` must keep the first.
        placeholder: the value that the backend accepts in its place.
    """

    path: tuple[str, ...]
    placeholder: str

    def adapt(self, chat: Chat) -> Chat:
        return _change_each(chat, "messages", self._message)

    def _message(self, message: Object) -> Object:
        if any(self._signature(call) for call in _calls(message)):
            return message
        return _change_each(message, "tool_calls", lambda c: _put(c, self.path, self.placeholder))

    def _signature(self, call: Object) -> object:
        value: object = call
        for name in self.path:
            value = value.get(name) if isinstance(value, dict) else None
        return value


@dataclass(frozen=True)
class SystemFirst(Adaptation):
    """Join all system messages into one at the beginning, for templates that accept no other."""

    def adapt(self, chat: Chat) -> Chat:
        messages = _messages(chat)
        system = [m for m in messages if m.get("role") in _SYSTEM_ROLES]
        if not system or (len(system) == 1 and messages[0] is system[0]):
            return chat
        first = {**system[0], "content": _joined([m.get("content") for m in system])}
        others = [m for m in messages if m.get("role") not in _SYSTEM_ROLES]
        return {**chat, "messages": [first, *others]}


@dataclass(frozen=True)
class CapOutput(Adaptation):
    """Limit the length of an answer to what the model can give.

    Args:
        limits: in tokens, by the model's name.
    """

    limits: Mapping[str, int]

    def adapt(self, chat: Chat) -> Chat:
        limit = self.limits.get(str(chat.get("model")))
        return cap_output(chat, limit) if limit else chat


def without_images(chat: Chat) -> Chat:
    """Return a chat with a note in place of each image, for models that take none."""

    def message(holder: Object) -> Object:
        def part(old: Object) -> Object:
            return _IMAGE_LEFT_OUT if old.get("type") in _IMAGES else old

        return _change_each(holder, "content", part)

    return _change_each(chat, "messages", message)


def restore_names(answer: Object, names: Mapping[str, str]) -> Object:
    """Return a chat completion, or a chunk of one, with the caller's names of the tools it calls.

    Args:
        answer: the backend's.
        names: the caller's name of each tool that was renamed, by the new one.
    """

    def said(holder: Object) -> Object:
        return _change_each(holder, "tool_calls", lambda call: _with_names(call, names))

    def choice(holder: Object) -> Object:
        return _change_in(_change_in(holder, "delta", said), "message", said)

    return _change_each(answer, "choices", choice)


def cap_output(body: Object, limit: int) -> Object:
    """Limit the length of an answer, in tokens, if a body of any dialect asks for more."""
    too_long = [n for n in _LENGTHS if isinstance(body.get(n), int) and body[n] > limit]
    return {**body, **dict.fromkeys(too_long, limit)} if too_long else body


def rename_fields(chat: Chat, **names: str) -> Chat:
    """Rename fields; if the new name is present already, its value is kept.

    Args:
        chat: the body.
        names: the new name of each old one.
    """
    if not any(old in chat for old in names):
        return chat
    renamed = {new: chat[old] for old, new in names.items() if old in chat}
    return {**renamed, **{k: v for k, v in chat.items() if k not in names}}


def drop_fields(chat: Chat, *names: str) -> Chat:
    """Remove fields."""
    if not any(name in chat for name in names):
        return chat
    return {k: v for k, v in chat.items() if k not in names}


def rename_roles(chat: Chat, **roles: str) -> Chat:
    """Rename the roles of messages.

    Args:
        chat: the body.
        roles: the new role of each old one.
    """

    def renamed(message: Object) -> Object:
        role = message["role"]
        return {**message, "role": roles[role]} if role in roles else message

    return _change_each(chat, "messages", renamed)


def _change_each(holder: Object, name: str, change: Callable[[Object], Object]) -> Object:
    """Change each object of a list in a field; return the given holder if that changes none."""
    old = holder.get(name)
    if not isinstance(old, list):
        return holder
    new = [change(item) if isinstance(item, dict) else item for item in old]
    return holder if all(map(is_, new, old)) else {**holder, name: new}


def _change_in(holder: Object, name: str, change: Callable[[Object], Object]) -> Object:
    """Change the object in a field; return the given holder if that changes nothing."""
    old = holder.get(name)
    new = change(old) if isinstance(old, dict) else old
    return holder if new is old else {**holder, name: new}


def _with_names(holder: Object, given: Mapping[str, str]) -> Object:
    """Rename what a tool, a call of one or a choice of one names."""
    for kind in _NAMED:
        holder = _change_in(holder, kind, lambda named: _renamed(named, "name", given))
    return holder


def _objects(holder: Object, name: str) -> list[Object]:
    items = holder.get(name)
    return [item for item in items if isinstance(item, dict)] if isinstance(items, list) else []


def _messages(chat: Chat) -> list[Object]:
    return _objects(chat, "messages")


def _calls(message: Object) -> list[Object]:
    return _objects(message, "tool_calls")


def _call_ids(chat: Chat) -> Iterator[str]:
    """Yield the ids of calls and results, in the order of the conversation."""
    for message in _messages(chat):
        for id in (*(call.get("id") for call in _calls(message)), message.get("tool_call_id")):
            if isinstance(id, str):
                yield id


def _tool_names(chat: Chat) -> Iterator[str]:
    """Yield the names of the tools that a chat offers, and of those that it has called."""
    holders = [*_objects(chat, "tools"), *(c for m in _messages(chat) for c in _calls(m))]
    for holder in holders:
        for kind in _NAMED:
            named = holder.get(kind)
            if isinstance(named, dict) and isinstance(name := named.get("name"), str) and name:
                yield name


def _digests(text: str, length: int) -> Iterator[str]:
    """Yield any number of different digests of a text, in letters and digits."""
    for attempt in itertools.count():
        digest = hashlib.shake_256(f"{attempt}:{text}".encode(errors="replace")).digest(length)
        yield "".join(_LETTERS_AND_DIGITS[byte % len(_LETTERS_AND_DIGITS)] for byte in digest)


def _renamed(holder: Object, name: str, given: Mapping[str, str]) -> Object:
    old = holder.get(name)
    new = given.get(old, old) if isinstance(old, str) else old
    return holder if new == old else {**holder, name: new}


def _put(holder: Object, path: Sequence[str], value: object) -> Object:
    """Return an object with a value at the end of a path of names."""
    name, *rest = path
    inner = holder.get(name)
    below = _put(inner if isinstance(inner, dict) else {}, rest, value) if rest else value
    return {**holder, name: below}


def _lone_text(part: object) -> str | None:
    """Return the text of a part that has nothing else."""
    if isinstance(part, dict) and part.keys() == {"type", "text"} and isinstance(part["text"], str):
        return part["text"]
    return None


def _joined(contents: Sequence[object]) -> object:
    """Join the contents of messages: strings, parts or nothing."""
    contents = [content for content in contents if content]
    if all(isinstance(content, str) for content in contents):
        return "\n\n".join(map(str, contents))
    return [
        part
        for content in contents
        for part in (content if isinstance(content, list) else [{"type": "text", "text": content}])
    ]
