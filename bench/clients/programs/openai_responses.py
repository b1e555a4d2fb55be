"""The openai package, Responses: continued by id, or from the items if TASK["items"] is set."""

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
TOOL = {"type": "function", "name": "get_weather", "parameters": SCHEMA, "strict": True}
client = openai.OpenAI(base_url=TASK["url"] + "/v1", api_key="caller")
history: list[Any] = []
last: str | None = None


def ask(new: list[Any]) -> Any:
    global last
    more: Any = {"tools": [TOOL]} if TASK["tools"] else {}
    more |= {"reasoning": {"effort": "low", "summary": "auto"}} if TASK["thinking"] else {}
    history.extend(new)
    asked: Any
    if TASK["items"]:
        asked = {"input": history, "include": ["reasoning.encrypted_content"], "store": False}
    else:
        asked = {"input": new, **({"previous_response_id": last} if last else {})}
    if TASK["stream"]:
        with client.responses.stream(model="auto", **asked, **more) as stream:
            for event in stream:
                if event.type == "response.reasoning_summary_text.delta":
                    print(event.delta)
            response = stream.get_final_response()
    else:
        response = client.responses.create(model="auto", **asked, **more)
    last = response.id
    history.extend(item.to_dict() for item in response.output)
    return response


for prompt in TASK["prompts"]:
    picture = [{"type": "input_image", "image_url": TASK["image"]}] if TASK["image"] else []
    new: list[Any] = [
        {"role": "user", "content": [{"type": "input_text", "text": prompt}, *picture]}
    ]
    while new:
        response = ask(new)
        new = [
            {"type": "function_call_output", "call_id": item.call_id, "output": TASK["found"]}
            for item in response.output
            if item.type == "function_call"
        ]
    print(response.output_text)
