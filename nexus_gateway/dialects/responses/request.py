"""A Responses request, as a chat.

What a chat cannot say is an obstacle, not an error: a backend that speaks this dialect itself
may still take the request. Only a malformed body is refused at once.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass
from numbers import Real
from typing import Any

from nexus_gateway.dialects.body import optional, refuse, required
from nexus_gateway.dialects.chat import check_messages
from nexus_gateway.dialects.responses.conversation import (
    Conversation,
    Fields,
    Message,
    Obstacles,
)
from nexus_gateway.errors import InvalidRequest

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
    obstacles = Obstacles()
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


def _messages(fields: Fields, obstacles: Obstacles) -> list[Message]:
    asked = fields.get("input")
    if asked is None:
        raise InvalidRequest("The field `input` is missing.", param="input")
    if not isinstance(asked, (str, list)):
        refuse("input", "a string or an array of items", asked)
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


def _tools(fields: Fields, obstacles: Obstacles) -> dict[str, Any]:
    """Return `tools` and what goes with them; chat backends refuse a choice among no tools."""
    tools = [
        _tool(f"tools[{i}]", tool, obstacles) for i, tool in enumerate(fields.get("tools") or [])
    ]
    choice = _tool_choice(fields.get("tool_choice"), obstacles)
    if not tools:
        return {} if choice in (None, "auto", "none") else {"tool_choice": choice}
    parallel = fields.get("parallel_tool_calls")
    return _present({"tools": tools, "tool_choice": choice, "parallel_tool_calls": parallel})


def _tool(at: str, tool: object, obstacles: Obstacles) -> dict[str, Any] | None:
    if not isinstance(tool, dict):
        refuse(at, "an object", tool)
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


def _tool_choice(choice: object, obstacles: Obstacles) -> object:
    if choice is None or (isinstance(choice, str) and choice in _CHOICES):
        return choice
    if not isinstance(choice, (str, dict)):
        refuse("tool_choice", "a string or an object", choice)
    if isinstance(choice, dict) and choice.get("type") == "function":
        name = required(choice, "name", str, "a string", "tool_choice.")
        return {"type": "function", "function": {"name": name}}
    obstacles.add(
        "tool_choice",
        "This `tool_choice` is not supported by this gateway; say 'auto', 'none', 'required' or "
        "name one function.",
    )
    return None


def _text(fields: Fields, obstacles: Obstacles) -> dict[str, Any]:
    text = fields.get("text") or {}
    _refuse_others(text, _TEXT_FIELDS, "text.", obstacles)
    return _present(
        {
            "response_format": _format(text, obstacles),
            "verbosity": optional(text, "verbosity", str, "a string", "text."),
        }
    )


def _format(text: Fields, obstacles: Obstacles) -> dict[str, Any] | None:
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


def _reasoning(fields: Fields, obstacles: Obstacles) -> dict[str, Any]:
    reasoning = fields.get("reasoning") or {}
    _refuse_others(reasoning, _REASONING_FIELDS, "reasoning.", obstacles)
    effort = optional(reasoning, "effort", str, "a string", "reasoning.")
    return _present({"reasoning_effort": effort})


def _logprobs(fields: Fields, obstacles: Obstacles) -> dict[str, Any]:
    include = fields.get("include") or []
    for entry in include:
        if not isinstance(entry, str):
            refuse("include", "an array of strings", entry)
        if entry not in _INCLUDABLE:
            obstacles.add("include", f"{entry!r} cannot be included by this gateway; remove it.")
    # Zero is how OpenAI's own responses say that nobody asked.
    top = fields.get("top_logprobs") or None
    return _present(
        {"logprobs": True if top or _LOGPROBS in include else None, "top_logprobs": top}
    )


def _refuse_state(fields: Fields, obstacles: Obstacles) -> None:
    """Note what needs a memory, and whatever is unknown."""
    for name, sentence in _STATELESS.items():
        if fields.get(name) not in (None, _HARMLESS.get(name)):
            obstacles.add(name, sentence)
    _refuse_others(fields, _KNOWN | _STATELESS.keys(), "", obstacles)


def _refuse_others(fields: Fields, known: Set[str], at: str, obstacles: Obstacles) -> None:
    for name in _present(fields):
        if name not in known:
            message = f"`{at}{name}` is not supported by this gateway; remove it."
            obstacles.add(at + name, message)
