"""LangChain: ChatOpenAI by chat completions or Responses, or ChatAnthropic, by TASK["api"]."""

import json
import os
from typing import Any

from langchain_anthropic import ChatAnthropic
from langchain_core.messages import HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI

TASK = json.loads(os.environ["TASK"])


def get_weather(city: str) -> str:
    """Return the weather."""
    return str(TASK["found"])


def model() -> Any:
    if TASK["api"] == "messages":
        thinking = {"type": "enabled", "budget_tokens": 2_000} if TASK["thinking"] else None
        return ChatAnthropic(
            model="auto", base_url=TASK["url"], api_key="caller", max_tokens=32_000,
            thinking=thinking,
        )  # fmt: skip
    by_id = {"use_responses_api": True, "use_previous_response_id": True}
    more: Any = by_id if TASK["api"] == "responses" else {}
    return ChatOpenAI(model="auto", base_url=TASK["url"] + "/v1", api_key="caller", **more)


def ask(chat: Any, messages: list[Any]) -> Any:
    if not TASK["stream"]:
        return chat.invoke(messages)
    whole: Any = None
    for chunk in chat.stream(messages):
        whole = chunk if whole is None else whole + chunk
    return whole


chat = model()
if TASK["tools"]:
    chat = chat.bind_tools([tool(get_weather)])
messages: list[Any] = []
for prompt in TASK["prompts"]:
    picture = [{"type": "image_url", "image_url": {"url": TASK["image"]}}] if TASK["image"] else []
    messages.append(HumanMessage(content=[{"type": "text", "text": prompt}, *picture]))
    while True:
        message = ask(chat, messages)
        messages.append(message)
        if not message.tool_calls:
            break
        messages += [
            ToolMessage(content=get_weather(""), tool_call_id=call["id"])
            for call in message.tool_calls
        ]
    print(*(block.get("reasoning", "") for block in message.content_blocks))
    print(message.text)
