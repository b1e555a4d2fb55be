"""The anthropic package: its tool runner, which always has a tool."""

import json
import os
from typing import Any

import anthropic

TASK = json.loads(os.environ["TASK"])
client = anthropic.Anthropic(base_url=TASK["url"], api_key="caller")
messages: list[Any] = []


def get_weather(city: str) -> str:
    """Return the weather.

    Args:
        city: its name.
    """
    return str(TASK["found"])


tool = anthropic.beta_tool(get_weather)
thinking: Any = {"type": "enabled", "budget_tokens": 2_000}
media, _, data = TASK["image"].removeprefix("data:").partition(";base64,")
source = {"type": "base64", "media_type": media, "data": data}
picture = [{"type": "image", "source": source}] if data else []
for prompt in TASK["prompts"]:
    messages.append({"role": "user", "content": [{"type": "text", "text": prompt}, *picture]})
    more: Any = {"thinking": thinking} if TASK["thinking"] else {}
    runner: Any = client.beta.messages.tool_runner(
        model="auto",
        max_tokens=20_000,
        messages=[*messages],
        tools=[tool],
        stream=TASK["stream"],
        **more,
    )
    for turn in runner:
        message = turn.get_final_message() if TASK["stream"] else turn
        messages.append({"role": "assistant", "content": message.content})
        if results := runner.generate_tool_call_response():
            messages.append(results)
    print(*(getattr(block, "thinking", getattr(block, "text", "")) for block in message.content))
