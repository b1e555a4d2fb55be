"""The openai package, chat completions."""

import json
import os
from typing import Any

import openai

TASK = json.loads(os.environ["TASK"])
SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string"}},
    "required": ["city"],
    "additionalProperties": False,
}
FUNCTION = {"name": "get_weather", "description": "Weather.", "parameters": SCHEMA, "strict": True}
client = openai.OpenAI(base_url=TASK["url"] + "/v1", api_key="caller")
messages: list[Any] = []


def ask() -> Any:
    more: Any = {"tools": [{"type": "function", "function": FUNCTION}]} if TASK["tools"] else {}
    asked = {"model": "auto", "messages": messages, **more}
    if not TASK["stream"]:
        return client.chat.completions.create(**asked).choices[0].message
    with client.chat.completions.stream(**asked) as stream:
        for event in stream:
            if event.type == "chunk" and event.chunk.choices:
                print(getattr(event.chunk.choices[0].delta, "reasoning_content", None) or "")
        return stream.get_final_completion().choices[0].message


for prompt in TASK["prompts"]:
    picture = [{"type": "image_url", "image_url": {"url": TASK["image"]}}] if TASK["image"] else []
    messages.append({"role": "user", "content": [{"type": "text", "text": prompt}, *picture]})
    while (message := ask()).tool_calls:
        messages.append(message)
        messages += [
            {"role": "tool", "tool_call_id": call.id, "content": TASK["found"]}
            for call in message.tool_calls
        ]
    messages.append(message)
    print(message.content)
