"""An OpenAI chat as the body of Anthropic's Messages API.

Refused, as leaving it out would give another answer than was asked for: `n` above 1, log
probabilities, audio, OpenAI's web search, the old `functions` and `function_call`, tools that
are no functions, a `response_format` without a schema, and what `anthropic_turns` refuses.

Left out, as mere hints: `seed`, `frequency_penalty`, `presence_penalty`, `logit_bias`,
`service_tier`, `store`, `metadata`, `prediction`, `prompt_cache_key`, `stream_options`,
`verbosity`, a message's `name`, an image's `detail`, and `tool_choice` where there are no
tools. So are `temperature`, `top_p` and `reasoning_effort` for those models that would answer
400 to them, and a `user` that Anthropic would refuse for being a person's address or number.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from nexus_gateway.provider import CannotServe

from .anthropic_turns import Block, need, system_and_turns

Fields = dict[str, Any]

# Anthropic asks for a number, and thinking counts towards it; every model offered takes this.
MAX_TOKENS = 32_000
HOTTEST = 1
LONGEST_USER = 256
_SAMPLED = re.compile(r"claude-(3.*|(opus|sonnet|haiku)-4(-[0-6])?(-\d{8})?)")
_EFFORTLESS = re.compile(r"claude-(3.*|opus-4(-[01])?(-\d{8})?|(sonnet|haiku)-4(-[0-5])?(-\d{8})?)")
_EFFORTS = {
    "none": "low",
    "minimal": "low",
    "low": "low",
    "medium": "medium",
    "high": "high",
    "xhigh": "xhigh",
    "max": "max",
}
_OLD_EFFORTS = {**_EFFORTS, "xhigh": "high", "max": "high"}
_PERSONAL = re.compile(r".*@.*|\+?[\d\s()-]{7,}", re.DOTALL)
_INSTEAD = {"functions": "send `tools` instead", "function_call": "send `tool_choice` instead"}


def messages_body(chat: Mapping[str, Any]) -> Fields:
    """Translate a chat; the answer is always asked for as a stream.

    Args:
        chat: OpenAI's body. It is not changed.

    Returns:
        Anthropic's.

    Raises:
        CannotServe: it asks for what Anthropic lacks, or is malformed.
    """
    fields = {name: value for name, value in chat.items() if value is not None}
    _refuse_what_lacks(fields)
    system, turns = system_and_turns(fields["messages"])
    if not turns:
        raise CannotServe("Anthropic needs a message that is not a system prompt.", "messages")
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


def _refuse_what_lacks(fields: Fields) -> None:
    lacks = {
        "n": fields.get("n", 1) != 1,
        "logprobs": bool(fields.get("logprobs")),
        "top_logprobs": bool(fields.get("top_logprobs")),
        "modalities": fields.get("modalities", ["text"]) != ["text"],
        "audio": "audio" in fields,
        "web_search_options": "web_search_options" in fields,
        "functions": "functions" in fields,
        "function_call": "function_call" in fields,
    }
    for name, asked in lacks.items():
        if asked:
            advice = _INSTEAD.get(name, "leave it out, or choose another model")
            raise CannotServe(f"Anthropic has no counterpart to this `{name}`: {advice}.", name)


def _system(blocks: list[Block]) -> Fields:
    if not blocks:
        return {}
    alone = len(blocks) == 1 and blocks[0].keys() == {"type", "text"}
    return {"system": blocks[0]["text"] if alone else blocks}


def _tools(fields: Fields) -> Fields:
    tools = need(fields.get("tools", []), list, "tools")
    if not tools:
        return {}
    choice = _choice(fields)
    return {
        "tools": [_tool(tool, f"tools[{i}]") for i, tool in enumerate(tools)],
        **({"tool_choice": choice} if choice else {}),
    }


def _tool(tool: object, where: str) -> Block:
    tool = need(tool, dict, where)
    if tool.get("type") != "function":
        raise CannotServe(f"`{where}`: Anthropic takes tools of the type `function`.", where)
    function = need(tool.get("function"), dict, f"{where}.function")
    schema = need(function.get("parameters") or {}, dict, f"{where}.function.parameters")
    optional = {
        "description": function.get("description"),
        "strict": function.get("strict"),
        "cache_control": tool.get("cache_control"),
    }
    return {
        "name": need(function.get("name"), str, f"{where}.function.name"),
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
            message = "Anthropic's `tool_choice` is auto, none, required or one function."
            raise CannotServe(message, "tool_choice")
    if fields.get("parallel_tool_calls") is False:
        return {"type": "auto", **choice, "disable_parallel_tool_use": True}
    return choice


def _output(fields: Fields) -> Fields:
    config = {**_format(fields.get("response_format")), **_effort(fields)}
    return {"output_config": config} if config else {}


def _format(wanted: object) -> Fields:
    match wanted:
        case None | {"type": "text"}:
            return {}
        case {"type": "json_schema", "json_schema": {"schema": dict() as schema}}:
            return {"format": {"type": "json_schema", "schema": schema}}
    message = "Anthropic writes JSON by a schema: send a `json_schema`, or leave it out."
    raise CannotServe(message, "response_format")


def _effort(fields: Fields) -> Fields:
    wanted, model = str(fields.get("reasoning_effort")), str(fields["model"])
    if _EFFORTLESS.fullmatch(model):
        return {}
    efforts = _OLD_EFFORTS if _SAMPLED.fullmatch(model) else _EFFORTS
    return {"effort": efforts[wanted]} if wanted in efforts else {}


def _sampling(fields: Fields) -> Fields:
    """Translate temperature or top_p: together they are a 400, newer models take neither."""
    if not _SAMPLED.fullmatch(str(fields["model"])):
        return {}
    warmth = fields.get("temperature")
    if isinstance(warmth, int | float):
        return {"temperature": min(warmth, HOTTEST)}
    return {"top_p": fields["top_p"]} if "top_p" in fields else {}


def _stops(fields: Fields) -> Fields:
    stop = fields.get("stop", [])
    stops: Iterable[object] = [stop] if isinstance(stop, str) else need(stop, list, "stop")
    texts = [text for one in stops if (text := need(one, str, "stop")).strip()]
    return {"stop_sequences": texts} if texts else {}


def _user(fields: Fields) -> Fields:
    user = str(fields.get("safety_identifier", fields.get("user", "")))
    if not user or len(user) > LONGEST_USER or _PERSONAL.fullmatch(user):
        return {}
    return {"metadata": {"user_id": user}}
