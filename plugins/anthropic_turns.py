"""OpenAI's messages as Anthropic's turns, part by part.

Anthropic has the system prompt apart from the conversation, lets user and assistant take
turns, and keeps tool calls and their results as blocks in these turns. It refuses blank texts
and a last answer that ends in white space.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any, NoReturn, TypeVar

from nexus_gateway.provider import CannotServe

Block = dict[str, Any]
T = TypeVar("T")

_WORDS: dict[type[Any], str] = {str: "a string", dict: "an object", list: "an array"}
_IMAGES = frozenset({"image/jpeg", "image/png", "image/gif", "image/webp"})
_PDF = frozenset({"application/pdf"})
# Other providers' ids may hold more, and a conversation may have begun with one of them.
_NOT_IN_IDS = re.compile(r"[^a-zA-Z0-9_-]")


def need(value: object, kind: type[T], where: str) -> T:
    """Return a value of the caller's that must have a type.

    Raises:
        CannotServe: it has another; `where` names it.
    """
    if not isinstance(value, kind):
        raise CannotServe(f"`{where}` must be {_WORDS[kind]}.", where)
    return value


def system_and_turns(messages: Iterable[Mapping[str, Any]]) -> tuple[list[Block], list[Block]]:
    """Translate a chat's messages.

    Args:
        messages: OpenAI's.

    Returns:
        The blocks of the system prompt and the turns, either of which may be empty.

    Raises:
        CannotServe: a role or a part has no counterpart, or is malformed.
    """
    system: list[Block] = []
    turns: list[Block] = []
    for i, message in enumerate(messages):
        where = f"messages[{i}]"
        match message.get("role"):
            case "system" | "developer":
                system += _instructions(message, where)
            case "user":
                _add(turns, "user", _content(message, where))
            case "assistant":
                _add(turns, "assistant", _answer(message, where))
            case "tool":
                _add(turns, "user", [_result(message, where)])
            case _:
                _refuse("this role; it knows system, user, assistant and tool", f"{where}.role")
    _tidy(turns)
    return system, turns


def _add(turns: list[Block], role: str, blocks: list[Block]) -> None:
    if not blocks:
        return
    if turns and turns[-1]["role"] == role:
        turns[-1]["content"] += blocks
    else:
        turns.append({"role": role, "content": blocks})


def _tidy(turns: list[Block]) -> None:
    for turn in turns:
        turn["content"].sort(key=lambda block: block["type"] != "tool_result")
    if turns and turns[-1]["role"] == "assistant" and "text" in turns[-1]["content"][-1]:
        last = turns[-1]["content"][-1]
        last["text"] = last["text"].rstrip()


def _instructions(message: Mapping[str, Any], where: str) -> list[Block]:
    blocks = _content(message, where)
    if any(block["type"] != "text" for block in blocks):
        _refuse("anything but text in a system prompt", f"{where}.content")
    return blocks


def _answer(message: Mapping[str, Any], where: str) -> list[Block]:
    """Translate what an assistant said and which tools it called."""
    for field in ("audio", "function_call"):
        if message.get(field):
            _refuse(f"`{field}`", f"{where}.{field}")
    refusal = need(message.get("refusal") or "", str, f"{where}.refusal")
    calls = need(message.get("tool_calls") or [], list, f"{where}.tool_calls")
    return [
        *_content(message, where),
        *_texts(refusal),
        *[_tool_use(call, f"{where}.tool_calls[{j}]") for j, call in enumerate(calls)],
    ]


def _tool_use(call: object, where: str) -> Block:
    call = need(call, dict, where)
    if call.get("type", "function") != "function":
        _refuse("tools that are no functions", where)
    function = need(call.get("function"), dict, f"{where}.function")
    return {
        "type": "tool_use",
        "id": _tool_id(call.get("id"), f"{where}.id"),
        "name": need(function.get("name"), str, f"{where}.function.name"),
        "input": _arguments(function.get("arguments") or "", f"{where}.function.arguments"),
    }


def _arguments(text: object, where: str) -> Block:
    text = need(text, str, where).strip()
    try:
        value = json.loads(text, parse_constant=_not_json) if text else {}
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise CannotServe(f"`{where}` must be a JSON object, as text.", where)
    return value


def _not_json(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _result(message: Mapping[str, Any], where: str) -> Block:
    """Translate what a tool gave back."""
    id = _tool_id(message.get("tool_call_id"), f"{where}.tool_call_id")
    blocks = _content(message, where)
    return {"type": "tool_result", "tool_use_id": id, **({"content": blocks} if blocks else {})}


def _tool_id(id: object, where: str) -> str:
    return _NOT_IN_IDS.sub("_", need(id, str, where))


def _content(message: Mapping[str, Any], where: str) -> list[Block]:
    """Translate a message's content: a string, parts, or nothing."""
    content = message.get("content")
    if content is None or isinstance(content, str):
        return _texts(content or "")
    return [
        block
        for j, part in enumerate(need(content, list, f"{where}.content"))
        for block in _blocks(need(part, dict, f"{where}.content[{j}]"), f"{where}.content[{j}]")
    ]


def _texts(text: str) -> list[Block]:
    return [{"type": "text", "text": text}] if text.strip() else []


def _blocks(part: Mapping[str, Any], where: str) -> list[Block]:
    """Translate a part; none for a blank text."""
    match part.get("type"):
        case "text" | "refusal" as kind:
            blocks = _texts(need(part.get(kind), str, f"{where}.{kind}"))
        case "image_url":
            blocks = [_image(need(part.get("image_url"), dict, f"{where}.image_url"), where)]
        case "file":
            blocks = [_document(need(part.get("file"), dict, f"{where}.file"), where)]
        case kind:
            _refuse(f"parts of the type `{kind}`; it takes text, image_url and file", where)
    kept = {"cache_control": part["cache_control"]} if part.get("cache_control") else {}
    return [{**block, **kept} for block in blocks]


def _image(image: Mapping[str, Any], where: str) -> Block:
    where = f"{where}.image_url.url"
    url = need(image.get("url"), str, where)
    if url.startswith(("https://", "http://")):
        return {"type": "image", "source": {"type": "url", "url": url}}
    return {"type": "image", "source": _inline(url, _IMAGES, where)}


def _document(file: Mapping[str, Any], where: str) -> Block:
    if file.get("file_id"):
        _refuse("files that lie elsewhere; send `file_data`", f"{where}.file.file_id")
    where = f"{where}.file.file_data"
    source = _inline(need(file.get("file_data"), str, where), _PDF, where)
    name = file.get("filename")
    titled = {"title": name} if isinstance(name, str) and name else {}
    return {"type": "document", "source": source, **titled}


def _inline(url: str, kinds: frozenset[str], where: str) -> Block:
    """Translate a data URL into a source."""
    head, comma, data = url.partition(",")
    scheme, _, about = head.partition(":")
    kind, *more = about.lower().split(";")
    if scheme.lower() != "data" or not comma or "base64" not in more:
        raise CannotServe(f"`{where}` must be a data URL in base64.", where)
    kind = "image/jpeg" if kind == "image/jpg" else kind
    if kind not in kinds:
        _refuse(f"this media type; it takes {', '.join(sorted(kinds))}", where)
    return {"type": "base64", "media_type": kind, "data": data}


def _refuse(what: str, where: str) -> NoReturn:
    raise CannotServe(f"`{where}`: Anthropic does not take {what}.", where)
