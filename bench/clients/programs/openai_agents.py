"""The openai-agents package; continued by `previous_response_id` if TASK["api"] is responses."""

import asyncio
import json
import os
from typing import Any

from agents import (
    Agent,
    ModelSettings,
    OpenAIChatCompletionsModel,
    OpenAIResponsesModel,
    Runner,
    function_tool,
    set_tracing_disabled,
)
from openai import AsyncOpenAI

TASK = json.loads(os.environ["TASK"])


def get_weather(city: str) -> str:
    """Return the weather."""
    return str(TASK["found"])


def told(prompt: str) -> list[Any]:
    picture = [{"type": "input_image", "image_url": TASK["image"]}] if TASK["image"] else []
    return [{"role": "user", "content": [{"type": "input_text", "text": prompt}, *picture]}]


async def main() -> None:
    set_tracing_disabled(True)
    client = AsyncOpenAI(base_url=TASK["url"] + "/v1", api_key="caller")
    stored = TASK["api"] == "responses"
    model = OpenAIResponsesModel if stored else OpenAIChatCompletionsModel
    agent = Agent(
        name="lab",
        instructions="Be short.",
        model=model("auto", client),
        model_settings=ModelSettings(store=True) if stored else ModelSettings(),
        tools=[function_tool(get_weather)] if TASK["tools"] else [],
    )
    last: str | None = None
    history: list[Any] = []
    for prompt in TASK["prompts"]:
        asked = told(prompt) if stored else history + told(prompt)
        if TASK["stream"]:
            result = Runner.run_streamed(agent, asked, previous_response_id=last)
            async for _ in result.stream_events():
                pass
        else:
            result = await Runner.run(agent, asked, previous_response_id=last)
        last = result.last_response_id if stored else None
        history = result.to_input_list()
        print(result.final_output)


asyncio.run(main())
