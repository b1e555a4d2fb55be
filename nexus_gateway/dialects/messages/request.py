"""Translate a Messages request into a chat.

By Anthropic's API reference, "Messages", version 2023-06-01. What would change the answer and has
no counterpart in a chat (a thread that Anthropic keeps, files in its store) makes the request
untranslatable. Left out are mere hints (`metadata`, `thinking`, `top_k`, `service_tier` and any
unknown field), and tools that Anthropic runs if others are offered: a tool is an offer. What such
tools did in earlier turns is told as text.

Kept, though OpenAI's reference lacks them, are what some backends need: the marks of the cache
(`cache_control`), the thinking of earlier turns (`reasoning_content`) and what the ids of tool
calls carry (`extra_content`). Other backends never get them (`wire.adaptations`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from nexus_gateway.dialects.body import json_type, optional, required, typed, wrong_type
from nexus_gateway.errors import InvalidRequest
from nexus_gateway.wire import json_codec
from nexus_gateway.wire.carried import unload_id

Json = dict[str, Any]
_SAME = ("temperature", "top_p", "max_tokens")
_RUN_BY_ANTHROPIC = ("mcp_servers", "container")
_TOOL_CHOICES: dict[object, Any] = {"auto": "auto", "any": "required", "none": "none"}
_THINKING = frozenset({"thinking", "redacted_thinking"})
# Tools that Anthropic defines and the client runs: without them an agent cannot act.
_RUN_BY_CLIENT = re.compile(r"(bash|computer|memory|text_editor)_\d+")
# Blocks of what Anthropic did, apart from the results of its tools.
_TOLD = frozenset(
    {"compaction", "mcp_tool_use", "search_result", "server_tool_use", "tool_reference"}
)
_RESULT = "_tool_result"
# What only Anthropic can read of them, and what says nothing to a model.
_NOT_TOLD = frozenset(
    {"cache_control", "citations", "encrypted_content", "encrypted_index", "signature"}
)
_MARK = "cache_control"
IMAGE_FOLLOWS = "(The image is in the next message.)"
FILE_FOLLOWS = "(The file is in the next message.)"


class Untranslatable(Exception):
    """A valid request that has no form as a chat."""

    def __init__(self, where: str, what: str = "", *, error: InvalidRequest | None = None) -> None:
        super().__init__(where)
        self.error = error or InvalidRequest(
            f"`{where}` asks for {what}. Only a backend that offers Anthropic's Messages supports "
            "that, and none is configured for this model: leave it out.",
            param=where,
        )


class _NoThreads(InvalidRequest):
    """A thread continues with what Anthropic has stored; its clients then send everything."""

    text = (
        "`thread` continues a conversation that only a backend that offers Anthropic's Messages "
        "can store, and none is configured for this model: send the whole conversation without it."
    )

    def body(self) -> dict[str, Any]:
        body = super().body()
        details = {"error_code": "thread_unsupported_request", "unsupported": ["thread"]}
        body["error"]["details"] = details
        return body


def check(fields: Mapping[str, Any]) -> None:
    """Check those fields of a request that the gateway reads."""
    messages = required(fields, "messages", list)
    if not messages:
        raise InvalidRequest("`messages` must not be empty.", param="messages")
    for i, message in enumerate(messages):
        where = f"messages[{i}]"
        required(typed(message, dict, where), "role", str, f"{where}.")
        _check_content(f"{where}.content", message.get("content"))
    if fields.get("system") is not None:
        _check_content("system", fields["system"])
    for i, tool in enumerate(optional(fields, "tools", list) or []):
        optional(typed(tool, dict, f"tools[{i}]"), "type", str, f"tools[{i}].")
    optional(fields, "stop_sequences", list)
    for name in ("tool_choice", "thinking", "output_config", "output_format"):
        optional(optional(fields, name, dict) or {}, "type", str, f"{name}.")


def _check_content(where: str, content: object) -> None:
    if isinstance(content, str):
        return
    if not isinstance(content, list):
        wrong_type(where, "a string or an array of blocks", content)
    for i, block in enumerate(content):
        if not isinstance(block, dict) or not isinstance(block.get("type"), str):
            wrong_type(f"{where}[{i}]", "an object with a `type`", block)


def to_chat(fields: Mapping[str, Any], *, stream: bool) -> Json:
    """Translate a request that passed `check`; a stream is asked for its usage."""
    if fields.get("thread"):
        raise Untranslatable("thread", error=_NoThreads(param="thread"))
    for name in _RUN_BY_ANTHROPIC:
        if fields.get(name):
            raise Untranslatable(name, "something that Anthropic runs")
    chat: Json = {"messages": [*_system(fields.get("system")), *_turns(fields["messages"])]}
    chat |= {name: fields[name] for name in _SAME if fields.get(name) is not None}
    if stops := fields.get("stop_sequences"):
        chat["stop"] = stops
    choice, config = fields.get("tool_choice") or {}, fields.get("output_config") or {}
    if tools := fields.get("tools"):
        chat["tools"] = [*_tools(tools, choice)]
    chat |= _tool_choice(choice)
    chat |= _response_format(config.get("format") or fields.get("output_format"))
    if effort := optional(config, "effort", str, "output_config."):
        chat["reasoning_effort"] = effort
    if stream:
        chat["stream_options"] = {"include_usage": True}
    return chat


def _system(system: object) -> Iterator[Json]:
    if isinstance(system, str):
        parts = [{"type": "text", "text": system}]
    else:
        parts = [_text(f"system[{i}]", block) for i, block in enumerate(_blocks(system))]
    if parts := [part for part in parts if part["text"]]:
        yield {"role": "system", "content": _joined(parts, "\n\n")}


def _joined(parts: list[Json], between: str) -> str | list[Json]:
    """Return texts as one; as parts if one is marked, whose texts joined are the same."""
    if not any(_MARK in part for part in parts):
        return between.join(part["text"] for part in parts)
    return [{**part, "text": part["text"] + between} for part in parts[:-1]] + parts[-1:]


def _marked(part: Json, block: Json) -> Json:
    """Return what a block was translated into, with the block's mark for the cache."""
    return {**part, _MARK: block[_MARK]} if block.get(_MARK) else part


def _blocks(content: object) -> Sequence[Json]:
    """Return a content's blocks; a string is one text block."""
    if isinstance(content, str):
        return [{"type": "text", "text": content}] if content else []
    return content if isinstance(content, list) else []


def _text(where: str, block: Json) -> Json:
    if block["type"] != "text":
        raise Untranslatable(f"{where}.type", f"a block of the type {block['type']!r} here")
    return _marked({"type": "text", "text": required(block, "text", str, f"{where}.")}, block)


def _turns(messages: Sequence[Json]) -> Iterator[Json]:
    for i, message in enumerate(messages):
        role, blocks, at = message["role"], _blocks(message["content"]), f"messages[{i}]."
        if role == "assistant":
            # Some backends refuse a turn that says nothing.
            if not blocks or any(block["type"] not in _THINKING for block in blocks):
                yield _assistant(f"{at}content", blocks)
        elif role == "user":
            yield from _user(f"{at}content", blocks)
        elif role == "system":
            yield from _system(message["content"])
        else:
            wrong_type(f"{at}role", "user, assistant or system", role)


def _assistant(at: str, blocks: Sequence[Json]) -> Json:
    texts: list[Json] = []
    calls: list[Json] = []
    thoughts: list[str] = []
    for i, block in enumerate(blocks):
        where = f"{at}[{i}]"
        if block["type"] == "tool_use":
            calls.append(_tool_call(f"{where}.", block))
        elif block["type"] in _THINKING:
            thoughts.append(optional(block, "thinking", str, f"{where}.") or "")
        else:
            texts.append(_told(block) or _text(where, block))
    message: Json = {"role": "assistant"}
    message["content"] = _joined(texts, "") or (None if texts or calls else "")
    if calls:
        message["tool_calls"] = calls
    if reasoning := "".join(thoughts):
        message["reasoning_content"] = reasoning
    return message


def _tool_call(at: str, block: Json) -> Json:
    arguments = json_codec.dumps(block.get("input") or {}).decode()
    name, carrier = required(block, "name", str, at), required(block, "id", str, at)
    id, extra = unload_id(carrier)
    call = {"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}
    return _marked({**call, "extra_content": extra} if extra else call, block)


def _user(at: str, blocks: Sequence[Json]) -> Iterator[Json]:
    """Yield the results of tools first, as a chat requires, then the user's message."""
    parts: list[Json] = []
    for i, block in enumerate(blocks):
        where = f"{at}[{i}]"
        if block["type"] == "tool_result":
            result, files = _tool_result(where, block)
            yield result
            parts += files
        else:
            parts += _parts(where, block)
    if parts:
        only_text = _lone_text(parts)
        yield {"role": "user", "content": parts if only_text is None else only_text}
    elif not blocks:
        yield {"role": "user", "content": ""}


def _lone_text(parts: list[Json]) -> str | None:
    """Return the text of a single part without a mark."""
    return parts[0].get("text") if len(parts) == 1 and _MARK not in parts[0] else None


def _tool_result(where: str, block: Json) -> tuple[Json, list[Json]]:
    """Return a tool's message, and the images and files that it cannot contain."""
    content = block.get("content")
    if content is not None:
        _check_content(f"{where}.content", content)
    texts = [_text_part("Error:")] if block.get("is_error") is True else []
    files: list[Json] = []
    inner = enumerate(_blocks(content))
    for part in (p for i, each in inner for p in _parts(f"{where}.content[{i}]", each)):
        if part["type"] == "text":
            texts.append(part)
        else:
            texts.append(_text_part(FILE_FOLLOWS if part["type"] == "file" else IMAGE_FOLLOWS))
            files.append(part)
    if texts:
        texts[-1] = _marked(texts[-1], block)
    id, _ = unload_id(required(block, "tool_use_id", str, f"{where}."))
    return {"role": "tool", "tool_call_id": id, "content": _joined(texts, "\n")}, files


def _text_part(text: str) -> Json:
    return {"type": "text", "text": text}


def _parts(where: str, block: Json) -> list[Json]:
    """Translate a block; only a document made of blocks is several parts."""
    parts = _document_blocks(where, block) or [_told(block) or _part(where, block)]
    return [*parts[:-1], _marked(parts[-1], block)]


def _told(block: Json) -> Json | None:
    """Tell of what Anthropic did; None if a block is not about that."""
    if block["type"] not in _TOLD and not block["type"].endswith(_RESULT):
        return None
    return _text_part(f"\n{json_codec.dumps(_readable(block)).decode()}\n")


def _readable(value: Any) -> Any:
    if isinstance(value, list):
        return [_readable(item) for item in value]
    if not isinstance(value, dict):
        return value
    hidden = _NOT_TOLD | {"data"} if value.get("type") == "base64" else _NOT_TOLD
    return {name: _readable(inner) for name, inner in value.items() if name not in hidden}


def _document_blocks(where: str, block: Json) -> list[Json]:
    source = block.get("source")
    if block["type"] != "document" or not isinstance(source, dict):
        return []
    content, at = source.get("content"), f"{where}.source.content"
    if source.get("type") != "content" or not content:
        return []
    _check_content(at, content)
    title = [_text_part(f"{block['title']}\n\n")] if block.get("title") else []
    return [*title, *(_part(f"{at}[{i}]", inner) for i, inner in enumerate(_blocks(content)))]


def _part(where: str, block: Json) -> Json:
    if block["type"] == "text":
        return _text_part(required(block, "text", str, f"{where}."))
    if block["type"] == "image":
        source = required(block, "source", dict, f"{where}.")
        return {"type": "image_url", "image_url": {"url": _url(f"{where}.source.", source)}}
    if block["type"] == "document":
        return _document_part(where, block)
    raise Untranslatable(f"{where}.type", f"a block of the type {block['type']!r}")


def _document_part(where: str, block: Json) -> Json:
    source, at = required(block, "source", dict, f"{where}."), f"{where}.source."
    if source.get("type") == "text":
        title = f"{block['title']}\n\n" if block.get("title") else ""
        return {"type": "text", "text": title + required(source, "data", str, at)}
    if source.get("type") != "base64":
        raise Untranslatable(f"{at}type", "a document that is stored elsewhere")
    name = block.get("title") or "document.pdf"
    return {"type": "file", "file": {"filename": name, "file_data": _url(at, source)}}


def _url(at: str, source: Json) -> str:
    """Return a source's URL, or a data URL of its content."""
    if source.get("type") == "url":
        return required(source, "url", str, at)
    if source.get("type") != "base64":
        raise Untranslatable(f"{at}type", "something from Anthropic's own store")
    media = required(source, "media_type", str, at)
    return f"data:{media};base64,{required(source, 'data', str, at)}"


def _tools(tools: Sequence[Json], choice: Json) -> Iterator[Json]:
    """Yield the tools that the caller runs; the others must not be all, nor be demanded."""
    ours = [tool.get("type") in (None, "custom") for tool in tools]
    for i, tool in enumerate(tools):
        if ours[i]:
            yield _tool(f"tools[{i}]", tool)
            continue
        is_demanded = choice.get("type") == "tool" and choice.get("name") == tool.get("name")
        if not any(ours) or is_demanded or _RUN_BY_CLIENT.fullmatch(str(tool["type"])):
            raise Untranslatable(f"tools[{i}].type", f"the tool {tool['type']!r}")


def _tool(where: str, tool: Json) -> Json:
    function: Json = {"name": required(tool, "name", str, f"{where}.")}
    if tool.get("description") is not None:
        function["description"] = tool["description"]
    function["parameters"] = required(tool, "input_schema", dict, f"{where}.")
    if isinstance(tool.get("strict"), bool):
        function["strict"] = tool["strict"]
    return _marked({"type": "function", "function": function}, tool)


def _tool_choice(choice: Json) -> Json:
    if not choice:
        return {}
    kind = choice.get("type")
    if kind == "tool":
        name = required(choice, "name", str, "tool_choice.")
        chat: Json = {"tool_choice": {"type": "function", "function": {"name": name}}}
    elif kind in _TOOL_CHOICES:
        chat = {"tool_choice": _TOOL_CHOICES[kind]}
    else:
        raise InvalidRequest(
            "`tool_choice.type` must be auto, any, none or tool, not "
            f"{repr(kind) if isinstance(kind, str) else json_type(kind)}.",
            param="tool_choice.type",
        )
    if choice.get("disable_parallel_tool_use") is True:
        chat["parallel_tool_calls"] = False
    return chat


def _response_format(form: object) -> Json:
    """Translate an answer's JSON schema; a chat requires a name for it."""
    if not isinstance(form, dict):
        return {}
    schema = {"name": "answer", "strict": True, "schema": form.get("schema")}
    return {"response_format": {"type": "json_schema", "json_schema": schema}}
