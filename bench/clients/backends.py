"""The scripted upstreams: what they answer, and what each refuses as the real service does."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from clients.scenarios import Scenario

from nexus_gateway.testing import Chunk, FakeUpstream, Received, Reply
from nexus_gateway.testing.strict import (
    SigningUpstream,
    StrictUpstream,
    ThinkingUpstream,
    call_ids,
    known_fields,
    system_first,
    without_fields,
)
from nexus_gateway.wire.chunks import Answer

# What a tool returns: programs return it themselves, agents read it from a file.
FOUND = "The gauge in the harbour reads 7391."
MOST_CACHED = 4
IMAGES = ("image", "image_url", "input_image")
# The first of them that a client offers is called; all of them only read.
READERS = ("get_weather", "Read", "read", "read_file", "exec_command", "exec")

Object = Mapping[str, Any]
MESSAGE = ("role", "content", "tool_calls", "tool_call_id")
CALL = ("id", "type", "function")
PATH = ("extra_content", "google", "thought_signature")


@dataclass(frozen=True, kw_only=True)
class Backend:
    """A provider of the gateway, and the fake in its place."""

    provider: str
    fake: Callable[[], FakeUpstream] = FakeUpstream
    model: str = ""

    def environment(self, base_url: str) -> dict[str, str]:
        """Return the variables of two keys."""
        name = self.provider.upper()
        shared = {f"{name}_BASE_URL": base_url, f"{name}_MODEL": self.model}
        keys = {f"{name}_KEY_1": "key-1", f"{name}_KEY_2": "key-2"}
        return {**shared, **keys, f"{name}_IMAGES": "true"}


def at_most(tokens: int) -> Callable[[Object], str | None]:
    """Refuse a larger `max_tokens`."""

    def check(chat: Object) -> str | None:
        asked = [chat[name] for name in ("max_tokens", "max_completion_tokens") if name in chat]
        return f"`max_tokens` must be at most {tokens}" if max(asked, default=0) > tokens else None

    return check


def anthropic_turns(request: Object) -> str | None:
    """Refuse what Anthropic refuses of a conversation (its API's reference: Messages, tool use)."""
    if "max_tokens" not in request:
        return "max_tokens: Field required"
    parts = [part for turn in request["messages"] for part in _content(turn)]
    for part in parts:
        if part["type"] == "thinking" and not part.get("signature"):
            return "messages: thinking.signature: Field required"
        if part["type"] == "tool_use" and not re.fullmatch(r"[a-zA-Z0-9_-]+", part["id"]):
            return "messages: tool_use.id: String should match pattern '^[a-zA-Z0-9_-]+$'"
    marked = [*parts, *_content({"content": request.get("system", "")}), *request.get("tools", [])]
    if sum("cache_control" in part for part in marked) > MOST_CACHED:
        return f"A maximum of {MOST_CACHED} blocks with cache_control may be provided."
    turns = [*request["messages"], {"content": ""}]
    for turn, after in pairwise(turns):
        used = {part["id"] for part in _content(turn) if part["type"] == "tool_use"}
        answered = {p["tool_use_id"] for p in _content(after) if p["type"] == "tool_result"}
        if used != answered:
            return "messages: each tool_use must have its tool_result in the next message"
    return None


def _content(turn: Object) -> list[Object]:
    content = turn["content"]
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


def _gemini() -> FakeUpstream:
    refused = ("store", "metadata", "prompt_cache_key", "service_tier", "frequency_penalty")
    fields = known_fields(message=MESSAGE, call=(*CALL, "extra_content"))
    unknown = without_fields(*refused, "safety_identifier", "verbosity")
    placeholder = "skip_thought_signature_validator"
    return SigningUpstream(fields, unknown, path=PATH, placeholder=placeholder)


def _deepseek() -> FakeUpstream:
    return ThinkingUpstream(known_fields(message=(*MESSAGE, "reasoning_content")))


def _mistral() -> FakeUpstream:
    return StrictUpstream(known_fields(message=MESSAGE), call_ids("[a-zA-Z0-9]{9}"))


def _groq() -> FakeUpstream:
    fields = known_fields(message=(*MESSAGE, "reasoning"))
    unknown = without_fields("prompt_cache_key", "store", "metadata", "verbosity")
    return StrictUpstream(fields, unknown, at_most(8_192))


BACKENDS = {
    "chat": Backend(provider="local", model="lab-model"),
    "anthropic": Backend(provider="anthropic", fake=lambda: StrictUpstream(anthropic_turns)),
    # It checks ids and reasoning, as OpenAI does without storage.
    "responses": Backend(provider="openai", fake=StrictUpstream),
    "gemini": Backend(provider="gemini", fake=_gemini),
    "deepseek": Backend(provider="deepseek", fake=_deepseek),
    "mistral": Backend(provider="mistral", fake=_mistral),
    "groq": Backend(provider="groq", fake=_groq),
    "template": Backend(
        provider="local", model="lab-model", fake=lambda: StrictUpstream(system_first)
    ),
}


@dataclass(frozen=True, kw_only=True)
class Calls(Reply):
    """An answer that calls these tools, each with its arguments."""

    calls: tuple[tuple[str, str], ...]

    def contents(self) -> list[Chunk]:
        answer = Answer("chatcmpl-fake", 1_700_000_000, self.model)
        return [answer.reasoning("Hm. ")] * self.reasoning + [*self._pieces(answer)]

    def _pieces(self, answer: Answer) -> Iterator[Chunk]:
        for index, (name, arguments) in enumerate(self.calls):
            yield answer.call(index, f"call_{index + 1}", name)
            yield answer.arguments(index, arguments[:3])
            yield answer.arguments(index, arguments[3:])


def said(*, turns: int, results: int, images: int) -> str:
    """Return the answer of a backend, which tells how much of the conversation reached it."""
    return f"Lab: {turns} turns, {results} results, {images} images."


def expected(scenario: Scenario) -> list[str]:
    """Return the answer to each prompt, of a backend that everything before it has reached."""
    images = int(scenario.image)
    turns = range(1, len(scenario.prompts) + 1)
    return [said(turns=turn, results=scenario.calls, images=images) for turn in turns]


def play(scenario: Scenario, note: Path, fake: FakeUpstream) -> None:
    """Let a backend answer as a scenario has it.

    Args:
        note: the file that tools are asked to read.
    """
    thinks = Reply(reasoning=scenario.thinking)

    def choose(received: Received) -> Reply:
        if scenario.every:
            return scenario.every
        if scenario.first and received.key == "key-1":
            return scenario.first
        body = received.body
        results = [part for part in _parts(body) if _is_result(part)]
        calls = tuple(_calls(body, note))[: scenario.calls]
        if calls and not results:
            return Calls(reasoning=scenario.thinking, calls=calls, tool_calls=len(calls))
        text = said(
            turns=sum(prompt.encode() in received.raw for prompt in scenario.prompts),
            results=sum(FOUND in json.dumps(part) for part in results),
            images=sum(part.get("type") in IMAGES for part in _parts(body)),
        )
        return replace(thinks, text=text)

    fake.choose = choose
    if scenario.once:
        fake.script(scenario.once)


def _parts(body: Object) -> Iterator[Object]:
    """Yield the messages or items of a request, and the parts of their content."""
    items = body["messages"] if "messages" in body else body["input"]
    for message in items if isinstance(items, list) else ():
        yield message
        if isinstance(message.get("content"), list):
            yield from message["content"]


def _is_result(part: Object) -> bool:
    types = ("tool_result", "function_call_output", "custom_tool_call_output")
    return part.get("role") == "tool" or part.get("type") in types


def _calls(body: Object, note: Path) -> Iterator[tuple[str, str]]:
    """Yield calls of the client's own tool that reads, for one that it declares."""
    functions = [tool.get("function", tool) for tool in body.get("tools") or []]
    named = [function for function in functions if "name" in function]  # a server's has none
    schemas = {f["name"]: f.get("parameters", f.get("input_schema")) for f in named}
    found = [name for reader in READERS for name in schemas if _is_called(reader, name)]
    for name in found[:1]:
        required = schemas[name].get("required") or [*schemas[name]["properties"]][:1]
        for _ in range(2):
            yield name, json.dumps({field: _argument(field, note) for field in required})


def _is_called(reader: str, name: str) -> bool:
    """Return whether this is the tool's name, perhaps after that of its namespace."""
    return re.fullmatch(rf"(.*[^a-z])?{reader}", name) is not None


def _argument(field: str, note: Path) -> str:
    if field == "city":
        return "Paris"
    if "path" in field.lower():
        return str(note)
    command = f"cat {note}"
    # Codex' `exec` takes a program in JavaScript.
    program = f"text(await tools.exec_command({json.dumps({'cmd': command})}))"
    return command if field in ("cmd", "command") else program
