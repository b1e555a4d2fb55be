"""A Messages request as a chat.

By Anthropic's API reference, "Messages", version 2023-06-01. What changes the answer and has no
form in a chat (tools that Anthropic runs, files in its store) is an obstacle; what is only a
hint (`metadata`, `cache_control`, `thinking`, `output_config.effort`, `top_k`, `service_tier` and
whatever else is not known) is left out, and so is the thinking of earlier turns, which is sealed
for the backend that made it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NoReturn

from nexus_gateway.dialects.body import json_type, optional, required, wrong_type
from nexus_gateway.errors import InvalidRequest
from nexus_gateway.wire import json_codec

Json = dict[str, Any]
_SAME = ("temperature", "top_p", "max_tokens")
_RUN_BY_ANTHROPIC = ("mcp_servers", "container")
_TOOL_CHOICES: dict[object, Any] = {"auto": "auto", "any": "required", "none": "none"}
_THOUGHTS = frozenset({"thinking", "redacted_thinking"})
IMAGE_FOLLOWS = "(The image is in the next message.)"
FILE_FOLLOWS = "(The file is in the next message.)"


class Untranslatable(Exception):
    """A request that is well formed and has no form as a chat."""

    def __init__(self, where: str, what: str) -> None:
        super().__init__(where)
        self.error = InvalidRequest(
            f"`{where}` asks for {what}, which only a backend that speaks Anthropic's Messages "
            "can do, and none is configured for this model; leave it out.",
            param=where,
        )


def check(fields: Mapping[str, Any]) -> None:
    """Check the shape of a request, as far as the gateway reads it.

    Raises:
        InvalidRequest: it is no Messages request.
    """
    messages = required(fields, "messages", list, "an array")
    if not messages:
        raise InvalidRequest("`messages` must not be empty.", param="messages")
    for i, message in enumerate(messages):
        where = f"messages[{i}]"
        if not isinstance(message, dict):
            wrong_type(where, "an object", message)
        required(message, "role", str, "a string", f"{where}.")
        _check_content(f"{where}.content", message.get("content"))
    system = fields.get("system")
    if system is not None and not isinstance(system, str):
        _check_content("system", system)
    for i, tool in enumerate(optional(fields, "tools", list, "an array") or []):
        if not isinstance(tool, dict):
            wrong_type(f"tools[{i}]", "an object", tool)
    for name in ("tool_choice", "thinking", "output_config"):
        optional(
            optional(fields, name, dict, "an object") or {}, "type", str, "a string", f"{name}."
        )


def _check_content(where: str, content: object) -> None:
    if isinstance(content, str):
        return
    if not isinstance(content, list):
        wrong_type(where, "a string or an array of blocks", content)
    for i, block in enumerate(content):
        if not isinstance(block, dict) or not isinstance(block.get("type"), str):
            wrong_type(f"{where}[{i}]", "an object with a `type`", block)


def to_chat(fields: Mapping[str, Any], *, stream: bool) -> Json:
    """Put a checked request into a chat's words.

    Args:
        fields: the body; it is not changed.
        stream: whether the answer is streamed: its usage then has to be asked for.

    Raises:
        Untranslatable: it has no form as a chat.
        InvalidRequest: a block is not as it must be.
    """
    for name in _RUN_BY_ANTHROPIC:
        if fields.get(name):
            raise Untranslatable(name, "something that Anthropic runs")
    chat: Json = {"messages": [*_system(fields.get("system")), *_turns(fields["messages"])]}
    chat |= {name: fields[name] for name in _SAME if fields.get(name) is not None}
    if stops := fields.get("stop_sequences"):
        chat["stop"] = stops
    if tools := fields.get("tools"):
        chat["tools"] = [_tool(f"tools[{i}]", tool) for i, tool in enumerate(tools)]
    chat |= _choice(fields.get("tool_choice"))
    chat |= _format(fields.get("output_config"))
    if stream:
        chat["stream_options"] = {"include_usage": True}
    return chat


def _system(system: object) -> Iterator[Json]:
    if isinstance(system, str):
        texts = [system]
    else:
        texts = [_text(f"system[{i}]", b) for i, b in enumerate(_blocks(system))]
    if whole := "\n\n".join(filter(None, texts)):
        yield {"role": "system", "content": whole}


def _blocks(content: object) -> Sequence[Json]:
    """Return a content's blocks; a string is one of text."""
    if isinstance(content, str):
        return [{"type": "text", "text": content}] if content else []
    return content if isinstance(content, list) else []


def _text(where: str, block: Json) -> str:
    if block["type"] != "text":
        raise Untranslatable(f"{where}.type", f"a block of the type {block['type']!r} here")
    return str(required(block, "text", str, "a string", f"{where}."))


def _turns(messages: Sequence[Json]) -> Iterator[Json]:
    for i, message in enumerate(messages):
        role, where = message["role"], f"messages[{i}]"
        blocks = _blocks(message["content"])
        at = f"{where}.content"
        if role == "assistant":
            yield _assistant(at, blocks)
        elif role == "user":
            yield from _user(at, blocks)
        elif role == "system":
            yield from _system(message["content"])
        else:
            wrong_type(f"{where}.role", "user, assistant or system", role)


def _assistant(at: str, blocks: Sequence[Json]) -> Json:
    texts: list[str] = []
    calls: list[Json] = []
    for i, block in enumerate(blocks):
        where = f"{at}[{i}]"
        if block["type"] == "tool_use":
            calls.append(_call(where, block))
        elif block["type"] not in _THOUGHTS:
            texts.append(_text(where, block))
    turn: Json = {"role": "assistant", "content": "".join(texts) or None}
    if calls:
        turn["tool_calls"] = calls
    elif not texts:
        turn["content"] = ""
    return turn


def _call(where: str, block: Json) -> Json:
    at = f"{where}."
    arguments = json_codec.dumps(block.get("input") or {}).decode()
    name = required(block, "name", str, "a string", at)
    id = required(block, "id", str, "a string", at)
    return {"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}


def _user(at: str, blocks: Sequence[Json]) -> Iterator[Json]:
    """Give the tools' results first, as a chat wants them, then what the user says."""
    parts: list[Json] = []
    for i, block in enumerate(blocks):
        where = f"{at}[{i}]"
        if block["type"] == "tool_result":
            result, images = _result(where, block)
            yield result
            parts += images
        else:
            parts.append(_part(where, block))
    if parts:
        only = parts[0].get("text") if len(parts) == 1 else None
        yield {"role": "user", "content": parts if only is None else only}
    elif not blocks:
        yield {"role": "user", "content": ""}


def _result(where: str, block: Json) -> tuple[Json, list[Json]]:
    """Return a tool's message, and the images that a tool's message cannot hold."""
    content = block.get("content")
    if content is not None:
        _check_content(f"{where}.content", content)
    texts: list[str] = ["Error:"] if block.get("is_error") is True else []
    images: list[Json] = []
    for i, inner in enumerate(_blocks(content)):
        part = _part(f"{where}.content[{i}]", inner)
        if part["type"] == "text":
            texts.append(part["text"])
        else:
            texts.append(FILE_FOLLOWS if part["type"] == "file" else IMAGE_FOLLOWS)
            images.append(part)
    id = required(block, "tool_use_id", str, "a string", f"{where}.")
    return {"role": "tool", "tool_call_id": id, "content": "\n".join(texts)}, images


def _part(where: str, block: Json) -> Json:
    read = _PARTS.get(block["type"])
    if read is None:
        raise Untranslatable(f"{where}.type", f"a block of the type {block['type']!r}")
    return read(where, block)


def _text_part(where: str, block: Json) -> Json:
    return {"type": "text", "text": _text(where, block)}


def _image_part(where: str, block: Json) -> Json:
    return {"type": "image_url", "image_url": {"url": _address(where, _source(where, block))}}


def _document_part(where: str, block: Json) -> Json:
    source = _source(where, block)
    if source.get("type") == "text":
        said = required(source, "data", str, "a string", f"{where}.source.")
        title = f"{block['title']}\n\n" if block.get("title") else ""
        return {"type": "text", "text": f"{title}{said}"}
    if source.get("type") != "base64":
        raise Untranslatable(f"{where}.source.type", "a document that lies elsewhere")
    name = block.get("title") or "document.pdf"
    return {"type": "file", "file": {"filename": name, "file_data": _address(where, source)}}


_PARTS: dict[str, Callable[[str, Json], Json]] = {
    "text": _text_part,
    "image": _image_part,
    "document": _document_part,
}


def _source(where: str, block: Json) -> Json:
    source: Json = required(block, "source", dict, "an object", f"{where}.")
    return source


def _address(where: str, source: Json) -> str:
    """Return a source as a URL: its own, or one that holds the data."""
    at = f"{where}.source."
    if source.get("type") == "url":
        return str(required(source, "url", str, "a string", at))
    if source.get("type") != "base64":
        raise Untranslatable(f"{at}type", "something from Anthropic's own store")
    media = required(source, "media_type", str, "a string", at)
    return f"data:{media};base64,{required(source, 'data', str, 'a string', at)}"


def _tool(where: str, tool: Json) -> Json:
    if tool.get("type") not in (None, "custom"):
        raise Untranslatable(f"{where}.type", f"the tool {tool['type']!r}")
    at = f"{where}."
    function: Json = {"name": required(tool, "name", str, "a string", at)}
    if tool.get("description") is not None:
        function["description"] = tool["description"]
    function["parameters"] = required(tool, "input_schema", dict, "an object", at)
    if isinstance(tool.get("strict"), bool):
        function["strict"] = tool["strict"]
    return {"type": "function", "function": function}


def _choice(choice: Json | None) -> Json:
    if not choice:
        return {}
    made: Json = {}
    if choice.get("type") == "tool":
        name = required(choice, "name", str, "a string", "tool_choice.")
        made["tool_choice"] = {"type": "function", "function": {"name": name}}
    elif choice.get("type") in _TOOL_CHOICES:
        made["tool_choice"] = _TOOL_CHOICES[choice["type"]]
    else:
        _refuse_choice(choice.get("type"))
    if choice.get("disable_parallel_tool_use") is True:
        made["parallel_tool_calls"] = False
    return made


def _refuse_choice(value: object) -> NoReturn:
    said = repr(value) if isinstance(value, str) else json_type(value)
    raise InvalidRequest(
        f"`tool_choice.type` must be auto, any, none or tool, not {said}.",
        param="tool_choice.type",
    )


def _format(config: Json | None) -> Json:
    """Return the wish for an answer by a schema; a chat wants a name for it."""
    form = (config or {}).get("format")
    if not isinstance(form, dict):
        return {}
    schema = {"name": "answer", "strict": True, "schema": form.get("schema")}
    return {"response_format": {"type": "json_schema", "json_schema": schema}}
