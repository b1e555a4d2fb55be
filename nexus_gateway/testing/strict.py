"""Fake upstreams that refuse what real backends refuse, for tests of a provider's `adaptations`.

async with ThinkingUpstream(call_ids("[a-z]{9}")) as upstream:
    ...  # send the turns of a conversation to upstream.base_url
    assert upstream.complaints == []
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

from aiohttp import web

from nexus_gateway.testing.reply import Reply
from nexus_gateway.testing.upstream import FakeUpstream
from nexus_gateway.testing.wire import Received, Wire
from nexus_gateway.wire.chunks import Chunk, choices

Object = Mapping[str, Any]
LONGEST_CALL_ID = 64
# What the ids of items begin with.
_ITEM_IDS = {
    **{"message": "msg", "reasoning": "rs", "function_call": "fc", "custom_tool_call": "ctc"},
    **{"tool_search_call": "tsc", "local_shell_call": "lsh"},
}
Check = Callable[[Object], str | None]


class StrictUpstream(FakeUpstream):
    """A FakeUpstream that answers 400 to a chat if a check finds a fault in it.

    Of Responses it checks the ids and the reasoning, as OpenAI does without storage.

    Args:
        checks: each returns what is wrong with a chat, None if nothing is.

    Attributes:
        complaints: what was wrong with the chats so far.
        lost: what came back with a stand-in instead of its own reasoning or signature.
    """

    def __init__(self, *checks: Check) -> None:
        super().__init__()
        self.complaints: list[str] = []
        self.lost: list[str] = []
        self._checks = checks
        self._answers = itertools.count(1)

    def _wire_at(self, path: str) -> Wire:
        wire = super()._wire_at(path)
        return _StampingWire(self._stamp, next(self._answers)) if type(wire) is Wire else wire

    def _stamp(self, message: dict[str, Any], answer: int) -> None:
        """Change a message or a delta of the answer with this number before it is sent."""
        for call in message.get("tool_calls") or []:
            if call.get("id"):
                call["id"] = f"{call['id']}-{answer}"

    def _reply_to(self, request: web.Request, received: Received) -> Reply:
        reply = super()._reply_to(request, received)
        checks = self._checks if "messages" in received.body else (_check_items,)
        found = [fault for check in checks if (fault := check(received.body))]
        self.complaints += found
        if not found:
            return reply
        return Reply(status=400, error={"message": found[0], "type": "invalid_request_error"})


class ThinkingUpstream(StrictUpstream):
    """Refuses turns with tool calls that lack their reasoning; any will do."""

    def __init__(self, *checks: Check, field: str = "reasoning_content") -> None:
        super().__init__(*checks, self._check)
        self._field = field
        self._thoughts: dict[str, str] = {}  # by the ids of the calls that followed

    def _stamp(self, message: dict[str, Any], answer: int) -> None:
        super()._stamp(message, answer)
        thought = f"Thought {answer}."
        if message.pop("reasoning_content", None):
            message[self._field] = thought
        self._thoughts |= {c["id"]: thought for c in message.get("tool_calls") or [] if c.get("id")}

    def _check(self, chat: Object) -> str | None:
        for message in chat["messages"]:
            thought = message.get(self._field)
            ids = [call["id"] for call in message.get("tool_calls") or []]
            if ids and not thought:
                return f"The {self._field} in the thinking mode must be passed back to the API."
            self.lost += [id for id in ids if self._thoughts.get(id, thought) != thought]
        return None


class SigningUpstream(StrictUpstream):
    """Signs its tool calls, and refuses those that lack their signature.

    Args:
        path: the names that lead from a call to its signature.
        placeholder: what it accepts in place of a signature.
    """

    def __init__(self, *checks: Check, path: tuple[str, ...], placeholder: str) -> None:
        super().__init__(*checks, self._check)
        self._path = path
        self._placeholder = placeholder
        self._signatures: dict[str, str] = {}  # by the ids of the calls

    def _stamp(self, message: dict[str, Any], answer: int) -> None:
        super()._stamp(message, answer)
        for call in message.get("tool_calls") or []:
            if call.get("id"):
                # As long as a real one, with all of base64's characters.
                signature = f"{call['id']}+/" + "Ab0=" * 400
                self._signatures[call["id"]] = signature
                value: Any = signature
                for name in reversed(self._path[1:]):
                    value = {name: value}
                call[self._path[0]] = value

    def _check(self, chat: Object) -> str | None:
        for call in _calls(chat):
            value: Any = call
            for name in self._path:
                value = (value or {}).get(name)
            signature = self._signatures.get(call["id"], self._placeholder)
            if value not in (signature, self._placeholder):
                return f"Function call {call['id']} is missing a {self._path[-1]}"
            self.lost += [call["id"]] if value != signature else []
        return None


class CallingUpstream(StrictUpstream):
    """Calls the first tool of those that it was offered, by the name that it was given."""

    def __init__(self, *checks: Check) -> None:
        super().__init__(*checks, self._check)
        self._offered = ""

    def _stamp(self, message: dict[str, Any], answer: int) -> None:
        super()._stamp(message, answer)
        for call in message.get("tool_calls") or []:
            if call["function"].get("name"):
                call["function"]["name"] = self._offered

    def _check(self, chat: Object) -> str | None:
        if tools := chat.get("tools"):
            self._offered = tools[0]["function"]["name"]
        return None


def tools(pattern: str) -> Check:
    """Refuse other names of tools, called or offered, and objects without `properties`."""

    def check(chat: Object) -> str | None:
        offered = [tool["function"] for tool in chat.get("tools") or []]
        chosen = chat.get("tool_choice")
        named = [*offered, *(call["function"] for call in _calls(chat))]
        named += [chosen["function"]] if isinstance(chosen, dict) else []
        wrong = [f["name"] for f in named if not re.fullmatch(pattern, f["name"])]
        if wrong:
            return f"Invalid 'tools[0].function.name': string too long, {wrong[0]!r}."
        bare = [f["name"] for f in offered if "properties" not in f.get("parameters", {})]
        return (
            f"Invalid schema for function {bare[0]!r}: object schema missing properties"
            if (bare)
            else None
        )

    return check


def known_fields(
    *, message: Collection[str], call: Collection[str] = ("id", "type", "function")
) -> Check:
    """Refuse other fields of messages and of tool calls, and parts and tools with marks."""

    def check(chat: Object) -> str | None:
        parts = [
            p for m in chat["messages"] if isinstance(m["content"], list) for p in m["content"]
        ]
        objects = [
            *((m, message) for m in chat["messages"]),
            *((c, call) for c in _calls(chat)),
            *((part, ("type", part["type"])) for part in parts),
            *((tool, ("type", "function")) for tool in chat.get("tools") or []),
        ]
        unknown = [name for holder, known in objects for name in holder if name not in known]
        return f"property {unknown[0]!r} is unsupported" if unknown else None

    return check


def without_fields(*names: str) -> Check:
    """Refuse fields of the body."""

    def check(chat: Object) -> str | None:
        refused = [name for name in names if name in chat]
        return f"Unknown name {refused[0]!r}: Cannot find field." if refused else None

    return check


def call_ids(pattern: str) -> Check:
    """Refuse ids that differ from a regular expression, and results without their call."""

    def check(chat: Object) -> str | None:
        known: set[str] = set()
        for message in chat["messages"]:
            ids = [call["id"] for call in message.get("tool_calls") or []]
            known.update(ids)
            result = message.get("tool_call_id")
            wrong = [id for id in ids if not re.fullmatch(pattern, id)]
            if wrong or (result and result not in known):
                return f"Tool call id was {wrong[0] if wrong else result} but must be {pattern}"
        return None

    return check


def system_first(chat: Object) -> str | None:
    """Refuse system messages but one at the beginning, as many templates do."""
    roles = [message["role"] for message in chat["messages"]]
    is_late = any(role in ("system", "developer") for role in roles[1:])
    return "System message must be at the beginning." if is_late else None


def _check_items(request: Object) -> str | None:
    for item in request["input"]:
        kind, id = item.get("type"), item.get("id")
        prefix = _ITEM_IDS.get(kind, "")
        if id is not None and not id.startswith(prefix):
            return f"Invalid id {id!r}. Expected an ID that begins with {prefix!r}."
        if len(item.get("call_id") or "") > LONGEST_CALL_ID:
            return "Invalid call_id: string too long."
        if kind == "reasoning" and not item.get("encrypted_content"):
            return f"Item with id {id!r} not found."
    return None


def _calls(chat: Object) -> Iterator[Object]:
    for message in chat["messages"]:
        yield from message.get("tool_calls") or []


class _StampingWire(Wire):
    """OpenAI's chat completions, each message or delta changed by `stamp`."""

    def __init__(self, stamp: Callable[[dict[str, Any], int], None], answer: int) -> None:
        self._stamp = stamp
        self._answer = answer

    def say(self, chunk: Chunk) -> bytes:
        for choice in choices(chunk):
            self._stamp(choice["delta"], self._answer)
        return super().say(chunk)

    def whole(self, completion: Chunk) -> Any:
        for choice in choices(completion):
            self._stamp(choice["message"], self._answer)
        return super().whole(completion)
