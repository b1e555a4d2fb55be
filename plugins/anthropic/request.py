"""Translate an OpenAI chat into a request of Anthropic's Messages API.

Refused, since the answer would differ from what was asked for: `n` above 1, log probabilities,
audio, OpenAI's web search, the old `functions` and `function_call`, tools that are not functions,
a `response_format` without a schema, and unknown roles, parts and files.

Left out, as mere hints: `seed`, `frequency_penalty`, `presence_penalty`, `logit_bias`,
`service_tier`, `store`, `metadata`, `prediction`, `prompt_cache_key`, `stream_options`,
`verbosity`, a message's `name`, an image's `detail`, and `tool_choice` if there are no tools;
also `temperature`, `top_p` and `reasoning_effort` for models that answer 400 to them, and a `user`
that Anthropic refuses because it looks like an e-mail address or a phone number.

Anthropic separates the system prompt from the conversation, requires user and assistant to take
turns, and has tool calls and their results as blocks in these turns. It refuses blank texts and a
last answer that ends in white space.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any, NoReturn, TypeVar

from nexus_gateway.provider import CannotServe

Block = dict[str, Any]
Fields = dict[str, Any]
T = TypeVar("T")

# Anthropic requires a limit, which includes thinking; every model that we list accepts this one.
MAX_TOKENS = 32_000
MAX_TEMPERATURE = 1
MAX_USER_LENGTH = 256
_WITH_SAMPLING = re.compile(r"claude-(3.*|(opus|sonnet|haiku)-4(-[0-6])?(-\d{8})?)")
_WITHOUT_EFFORT = re.compile(
    r"claude-(3.*|opus-4(-[01])?(-\d{8})?|(sonnet|haiku)-4(-[0-5])?(-\d{8})?)"
)
_EFFORTS = {
    "none": "low",
    "minimal": "low",
    "low": "low",
    "medium": "medium",
    "high": "high",
    "xhigh": "xhigh",
    "max": "max",
}
_OLDER_EFFORTS = {**_EFFORTS, "xhigh": "high", "max": "high"}
_PERSONAL = re.compile(r".*@.*|\+?[\d\s()-]{7,}", re.DOTALL)
_ALTERNATIVES = {
    "functions": "send `tools` instead",
    "function_call": "send `tool_choice` instead",
}
_IMAGES = frozenset({"image/jpeg", "image/png", "image/gif", "image/webp"})
_PDF = frozenset({"application/pdf"})
_TYPE_NAMES: dict[type[Any], str] = {str: "a string", dict: "an object", list: "an array"}


def messages_body(chat: Mapping[str, Any]) -> Fields:
    """Translate a chat, which is not changed; the answer is always requested as a stream."""
    fields = {name: value for name, value in chat.items() if value is not None}
    _refuse_unsupported(fields)
    system, turns = _system_and_turns(fields["messages"])
    if not turns:
        raise CannotServe("`messages` needs a message that is not a system prompt.", "messages")
    return {
        "model": fields["model"],
        "max_tokens": fields.get("max_completion_tokens", fields.get("max_tokens", MAX_TOKENS)),
        "stream": True,
        **_system(system),
        "messages": turns,
        **_tools(fields),
        **_output(fields),
        **_sampling(fields),
        **_stops(fields),
        **_user(fields),
    }


def _refuse_unsupported(fields: Fields) -> None:
    unsupported = {
        "n": fields.get("n", 1) != 1,
        "logprobs": bool(fields.get("logprobs")),
        "top_logprobs": bool(fields.get("top_logprobs")),
        "modalities": fields.get("modalities", ["text"]) != ["text"],
        "audio": "audio" in fields,
        "web_search_options": "web_search_options" in fields,
        "functions": "functions" in fields,
        "function_call": "function_call" in fields,
    }
    for name, requested in unsupported.items():
        if requested:
            advice = _ALTERNATIVES.get(name, "leave it out, or choose another model")
            raise CannotServe(f"Anthropic does not support this `{name}`: {advice}.", name)


def _system(blocks: list[Block]) -> Fields:
    if not blocks:
        return {}
    plain = len(blocks) == 1 and blocks[0].keys() == {"type", "text"}
    return {"system": blocks[0]["text"] if plain else blocks}


def _tools(fields: Fields) -> Fields:
    tools = _typed(fields.get("tools", []), list, "tools")
    if not tools:
        return {}
    choice = _choice(fields)
    return {
        "tools": [_tool(tool, f"tools[{i}]") for i, tool in enumerate(tools)],
        **({"tool_choice": choice} if choice else {}),
    }


def _tool(tool: object, where: str) -> Block:
    tool = _typed(tool, dict, where)
    if tool.get("type") != "function":
        raise CannotServe(
            f"`{where}`: Anthropic supports only tools of the type `function`.", where
        )
    function = _typed(tool.get("function"), dict, f"{where}.function")
    schema = _typed(function.get("parameters") or {}, dict, f"{where}.function.parameters")
    optional = {
        "description": function.get("description"),
        "strict": function.get("strict"),
        "cache_control": tool.get("cache_control"),
    }
    return {
        "name": _typed(function.get("name"), str, f"{where}.function.name"),
        "input_schema": {"type": "object", **schema},
        **{name: value for name, value in optional.items() if value},
    }


def _choice(fields: Fields) -> Fields:
    match fields.get("tool_choice"):
        case None:
            choice = {}
        case "auto":
            choice = {"type": "auto"}
        case "none":
            return {"type": "none"}
        case "required":
            choice = {"type": "any"}
        case {"type": "function", "function": {"name": str() as name}}:
            choice = {"type": "tool", "name": name}
        case _:
            message = "`tool_choice` must be auto, none, required or one function."
            raise CannotServe(message, "tool_choice")
    if fields.get("parallel_tool_calls") is False:
        return {"type": "auto", **choice, "disable_parallel_tool_use": True}
    return choice


def _output(fields: Fields) -> Fields:
    config = {**_format(fields.get("response_format")), **_effort(fields)}
    return {"output_config": config} if config else {}


def _format(response_format: object) -> Fields:
    match response_format:
        case None | {"type": "text"}:
            return {}
        case {"type": "json_schema", "json_schema": {"schema": dict() as schema}}:
            return {"format": {"type": "json_schema", "schema": schema}}
    message = "Anthropic supports only the `response_format` `json_schema`: send a schema."
    raise CannotServe(message, "response_format")


def _effort(fields: Fields) -> Fields:
    effort, model = str(fields.get("reasoning_effort")), str(fields["model"])
    if _WITHOUT_EFFORT.fullmatch(model):
        return {}
    efforts = _OLDER_EFFORTS if _WITH_SAMPLING.fullmatch(model) else _EFFORTS
    return {"effort": efforts[effort]} if effort in efforts else {}


def _sampling(fields: Fields) -> Fields:
    """Translate temperature or top_p: both are a 400, and newer models accept neither."""
    if not _WITH_SAMPLING.fullmatch(str(fields["model"])):
        return {}
    temperature = fields.get("temperature")
    if isinstance(temperature, int | float):
        return {"temperature": min(temperature, MAX_TEMPERATURE)}
    return {"top_p": fields["top_p"]} if "top_p" in fields else {}


def _stops(fields: Fields) -> Fields:
    stop = fields.get("stop", [])
    stops: Iterable[object] = [stop] if isinstance(stop, str) else _typed(stop, list, "stop")
    texts = [text for item in stops if (text := _typed(item, str, "stop")).strip()]
    return {"stop_sequences": texts} if texts else {}


def _user(fields: Fields) -> Fields:
    user = str(fields.get("safety_identifier", fields.get("user", "")))
    if not user or len(user) > MAX_USER_LENGTH or _PERSONAL.fullmatch(user):
        return {}
    return {"metadata": {"user_id": user}}


def _system_and_turns(messages: Iterable[Mapping[str, Any]]) -> tuple[list[Block], list[Block]]:
    """Return the blocks of the system prompt and the turns, either of which may be empty."""
    system: list[Block] = []
    turns: list[Block] = []
    for i, message in enumerate(messages):
        where = f"messages[{i}]"
        match message.get("role"):
            case "system" | "developer":
                system += _marked(_instructions(message, where), message)
            case "user":
                _add_blocks(turns, "user", _marked(_content(message, where), message))
            case "assistant":
                _add_blocks(turns, "assistant", _marked(_assistant(message, where), message))
            case "tool":
                _add_blocks(turns, "user", _marked([_result(message, where)], message))
            case _:
                _refuse("this role; use system, user, assistant or tool", f"{where}.role")
    _finish_turns(turns)
    return system, turns


def _marked(blocks: list[Block], holder: Mapping[str, Any]) -> list[Block]:
    """Put the mark for the cache of a message, a part or a call on the last of its blocks."""
    mark = holder.get("cache_control")
    return [*blocks[:-1], {**blocks[-1], "cache_control": mark}] if blocks and mark else blocks


def _add_blocks(turns: list[Block], role: str, blocks: list[Block]) -> None:
    if not blocks:
        return
    if turns and turns[-1]["role"] == role:
        turns[-1]["content"] += blocks
    else:
        turns.append({"role": role, "content": blocks})


def _finish_turns(turns: list[Block]) -> None:
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


def _assistant(message: Mapping[str, Any], where: str) -> list[Block]:
    """Translate the text and the tool calls of an assistant."""
    for field in ("audio", "function_call"):
        if message.get(field):
            _refuse(f"`{field}`", f"{where}.{field}")
    refusal = _typed(message.get("refusal") or "", str, f"{where}.refusal")
    calls = _typed(message.get("tool_calls") or [], list, f"{where}.tool_calls")
    return [
        *_content(message, where),
        *_texts(refusal),
        *[_tool_use(call, f"{where}.tool_calls[{j}]") for j, call in enumerate(calls)],
    ]


def _tool_use(call: object, where: str) -> Block:
    call = _typed(call, dict, where)
    if call.get("type", "function") != "function":
        _refuse("tools that are not functions", where)
    function = _typed(call.get("function"), dict, f"{where}.function")
    block = {
        "type": "tool_use",
        "id": _typed(call.get("id"), str, f"{where}.id"),
        "name": _typed(function.get("name"), str, f"{where}.function.name"),
        "input": _arguments(function.get("arguments") or "", f"{where}.function.arguments"),
    }
    return _marked([block], call)[0]


def _arguments(text: object, where: str) -> Block:
    text = _typed(text, str, where).strip()
    try:
        value = json.loads(text, parse_constant=_not_json) if text else {}
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise CannotServe(f"`{where}` must be a string that contains a JSON object.", where)
    return value


def _not_json(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _result(message: Mapping[str, Any], where: str) -> Block:
    id = _typed(message.get("tool_call_id"), str, f"{where}.tool_call_id")
    blocks = _content(message, where)
    return {"type": "tool_result", "tool_use_id": id, **({"content": blocks} if blocks else {})}


def _content(message: Mapping[str, Any], where: str) -> list[Block]:
    """Translate a message's content: a string, parts, or nothing."""
    content = message.get("content")
    if content is None or isinstance(content, str):
        return _texts(content or "")
    return [
        block
        for j, part in enumerate(_typed(content, list, f"{where}.content"))
        for block in _blocks(_typed(part, dict, f"{where}.content[{j}]"), f"{where}.content[{j}]")
    ]


def _texts(text: str) -> list[Block]:
    return [{"type": "text", "text": text}] if text.strip() else []


def _blocks(part: Mapping[str, Any], where: str) -> list[Block]:
    """Translate a part; a blank text has no block."""
    match part.get("type"):
        case "text" | "refusal" as kind:
            blocks = _texts(_typed(part.get(kind), str, f"{where}.{kind}"))
        case "image_url":
            blocks = [_image(_typed(part.get("image_url"), dict, f"{where}.image_url"), where)]
        case "file":
            blocks = [_document(_typed(part.get("file"), dict, f"{where}.file"), where)]
        case kind:
            _refuse(f"parts of the type `{kind}`; use text, image_url or file", where)
    return _marked(blocks, part)


def _image(image: Mapping[str, Any], where: str) -> Block:
    where = f"{where}.image_url.url"
    url = _typed(image.get("url"), str, where)
    if url.startswith(("https://", "http://")):
        return {"type": "image", "source": {"type": "url", "url": url}}
    return {"type": "image", "source": _inline(url, _IMAGES, where)}


def _document(file: Mapping[str, Any], where: str) -> Block:
    if file.get("file_id"):
        _refuse("stored files; send `file_data`", f"{where}.file.file_id")
    where = f"{where}.file.file_data"
    source = _inline(_typed(file.get("file_data"), str, where), _PDF, where)
    name = file.get("filename")
    title = {"title": name} if isinstance(name, str) and name else {}
    return {"type": "document", "source": source, **title}


def _inline(url: str, kinds: frozenset[str], where: str) -> Block:
    """Translate a data URL into a source."""
    head, comma, data = url.partition(",")
    scheme, _, media_type = head.partition(":")
    kind, *parameters = media_type.lower().split(";")
    if scheme.lower() != "data" or not comma or "base64" not in parameters:
        raise CannotServe(f"`{where}` must be a data URL in base64.", where)
    kind = "image/jpeg" if kind == "image/jpg" else kind
    if kind not in kinds:
        _refuse(f"this media type; use {', '.join(sorted(kinds))}", where)
    return {"type": "base64", "media_type": kind, "data": data}


def _refuse(what: str, where: str) -> NoReturn:
    raise CannotServe(f"`{where}`: Anthropic does not support {what}.", where)


def _typed(value: object, kind: type[T], where: str) -> T:
    """Return a value of the caller's that must have a type; CannotServe names it by `where`."""
    if not isinstance(value, kind):
        raise CannotServe(f"`{where}` must be {_TYPE_NAMES[kind]}.", where)
    return value
