"""The anthropic package: its messages."""

import json
import os
from typing import Any

import anthropic

TASK = json.loads(os.environ["TASK"])
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOL = {"name": "get_weather", "description": "Weather.", "input_schema": SCHEMA}
client = anthropic.Anthropic(base_url=TASK["url"], api_key="caller")
messages: list[Any] = []
asked: Any = {"model": "auto", "max_tokens": 20_000, "messages": messages}
if TASK["thinking"]:
    asked["thinking"] = {"type": "enabled", "budget_tokens": 2_000}
if TASK["tools"]:
    asked["tools"] = [TOOL]


def ask() -> Any:
    if not TASK["stream"]:
        return client.messages.create(**asked)
    with client.messages.stream(**asked) as stream:
        return stream.get_final_message()


media, _, data = TASK["image"].removeprefix("data:").partition(";base64,")
source = {"type": "base64", "media_type": media, "data": data}
picture = [{"type": "image", "source": source}] if data else []
for prompt in TASK["prompts"]:
    messages.append({"role": "user", "content": [{"type": "text", "text": prompt}, *picture]})
    while (message := ask()).stop_reason == "tool_use":
        results = [
            {"type": "tool_result", "tool_use_id": block.id, "content": TASK["found"]}
            for block in message.content
            if block.type == "tool_use"
        ]
        messages.append({"role": "assistant", "content": message.content})
        messages.append({"role": "user", "content": results})
    messages.append({"role": "assistant", "content": message.content})
    print(*(getattr(block, "thinking", getattr(block, "text", "")) for block in message.content))
