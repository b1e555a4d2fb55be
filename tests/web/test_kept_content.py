"""What a conversation says is kept in the store of responses, and shown nowhere else."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from collector import collecting
from fakes import KEYS
from processes import process

from nexus_gateway.dialects.responses import RESPONSES
from nexus_gateway.settings import Settings
from nexus_gateway.store.memory import MemoryStore
from nexus_gateway.testing.reply import Reply
from nexus_gateway.testing.upstream import FakeUpstream
from nexus_gateway.web.bodies import BodyBudget
from nexus_gateway.web.conversation import Conversation

SAID, FORGOTTEN, ANSWERED = "said-canary-31415", "forgotten-canary-16180", "answer-canary-27182"
ADMIN = "admin-token-of-the-test"
ANN, BOB = "anns-key", "bobs-key"
ECHO = {"message": f"Rejected: {SAID}", "param": SAID, "code": SAID}
REPLIES = [
    Reply(text=ANSWERED, tool_calls=2),
    *[Reply(status=status, error=ECHO) for status in (400, 404, 500)],
    *[Reply(text=ANSWERED + " a b", **{k: 1}) for k in ("cut_after", "error_after", "end_after")],
    Reply(body=ANSWERED.encode(), content_type="text/html"),
]


def asked(text: str, **more: Any) -> dict[str, Any]:
    """Return a request that says a text in each of its fields that can have one."""
    call = {"call_id": text, "name": text}
    image = {"type": "input_image", "image_url": f"data:image/png;base64,{text}"}
    return {
        "instructions": text,
        "input": [
            {"role": "user", "content": [{"type": "input_text", "text": text}]},
            {"type": "reasoning", "id": text, "summary": [], "encrypted_content": text},
            {"type": "function_call", "arguments": json.dumps({text: text}), **call},
            {"type": "function_call_output", "call_id": text, "output": [image]},
            {"type": "custom_tool_call", "input": text, **call},
            {"type": "custom_tool_call_output", "call_id": text, "output": text},
        ],
        "tools": [{"type": "function", "name": text, "description": text, "parameters": {}}],
        "metadata": {text: text},
        **{"user": text, "prompt_cache_key": text, "safety_identifier": text, text: text},
        **more,
    }


class Caller:
    def __init__(self, session: aiohttp.ClientSession, url: str, key: str) -> None:
        self._session = session
        self._url = url
        self._head = {"Authorization": f"Bearer {key}"}

    async def send(self, method: str, path: str, body: Any = None) -> str:
        async with self._session.request(
            method, self._url + path, json=body, headers=self._head
        ) as response:
            return await response.text()


async def converse(caller: Caller, upstream: FakeUpstream) -> tuple[str, str]:
    """Ask in each way, answered in each way; return the ids of a kept response and of its item."""
    upstream.default = Reply(text=ANSWERED, reasoning=True)
    ways = itertools.product(("groq", "openai"), (False, True), REPLIES, (FORGOTTEN, SAID))
    for model, stream, reply, text in ways:
        upstream.script(reply)
        request = asked(text, store=text is SAID, model=model, stream=stream)
        await caller.send("POST", "/v1/responses", request)
        # This one succeeds, which keeps the circuit closed.
        assert ANSWERED in await caller.send("POST", "/v1/responses", request)
    response = json.loads(await caller.send("POST", "/v1/responses", asked(SAID, model="groq")))
    continued = {"input": SAID, "previous_response_id": response["id"], "model": "openai"}
    assert ANSWERED in await caller.send("POST", "/v1/responses", continued)
    return response["id"], response["output"][0]["id"]


async def uses(caller: Caller, response: str, item: str) -> list[str]:
    """Return what another caller gets of a response."""
    path, reference = f"/v1/responses/{response}", [{"type": "item_reference", "id": item}]
    texts = [await caller.send("GET", path), await caller.send("GET", f"{path}/input_items")]
    texts.append(await caller.send("DELETE", path))
    for path, fields in itertools.product(
        ("/v1/responses", "/v1/responses/input_tokens"),
        ({"input": "Hi", "previous_response_id": response}, {"input": reference}),
    ):
        texts.append(await caller.send("POST", path, fields))
    return texts


async def observed(caller: Caller) -> list[str]:
    """Return what the gateway shows to its operator."""
    paths = ("/", "/health", "/metrics", "/v1/providers", "/v1/usage", "/v1/models")
    return [await caller.send("GET", path) for path in paths]


async def recent_events(session: aiohttp.ClientSession, url: str) -> str:
    """Return what the page gets when it is opened: the latest requests too."""
    head = {"Authorization": f"Bearer {ADMIN}"}
    async with session.get(f"{url}/v1/events", headers=head) as response:
        return (await response.content.readuntil(b"\n\n")).decode()


def contents(folder: Path, name: str) -> bytes:
    """Return what is in a database and the files beside it."""
    return b"".join(file.read_bytes() for file in folder.glob(f"{name}.sqlite3*"))


@pytest.mark.parametrize("style", ["text", "json"])
async def test_what_is_said_is_only_in_the_store(
    upstream: FakeUpstream, tmp_path: Path, style: str
) -> None:
    traces: list[bytes] = []

    async def take(request: web.Request) -> web.Response:
        traces.append(await request.read())
        return web.Response()

    env = {
        **{"GROQ_KEY_1": KEYS[0], "GROQ_BASE_URL": upstream.base_url, "GROQ_IMAGES_1": "true"},
        **{"OPENAI_KEY_1": KEYS[1], "OPENAI_BASE_URL": upstream.base_url},
        **{"GATEWAY_KEYS": f"{ANN},{BOB}", "ADMIN_TOKEN": ADMIN},
        **{"LOG_LEVEL": "debug", "LOG_FORMAT": style, "METRICS": "true", "MAX_ATTEMPTS": "1"},
        "LEDGER": f"sqlite:///{tmp_path}/ledger.sqlite3",
        "RESPONSE_STORE": f"sqlite:///{tmp_path}/responses.sqlite3",
    }
    async with (
        collecting(take) as collector,
        process(tmp_path, OTEL_EXPORTER_OTLP_ENDPOINT=collector, **env) as gateway,
        aiohttp.ClientSession() as session,
    ):
        ids = await converse(Caller(session, gateway.url, ANN), upstream)
        shown = await uses(Caller(session, gateway.url, BOB), *ids)
        shown += await observed(Caller(session, gateway.url, ADMIN))
        shown.append(await recent_events(session, gateway.url))
        gateway.process.terminate()
        assert await gateway.exit_code() == 0
    ledger, kept = contents(tmp_path, "ledger"), contents(tmp_path, "responses")
    places = ["".join(shown).encode(), "".join(gateway.log).encode(), ledger, b"".join(traces)]
    for place in places:  # each has seen the requests
        assert b"Groq (Key #1)" in place
    for text, place in itertools.product((SAID, FORGOTTEN, ANSWERED), places):
        assert text.encode() not in place
    assert SAID.encode() in kept
    assert ANSWERED.encode() in kept
    assert FORGOTTEN.encode() not in kept


async def test_no_representation_shows_what_is_said() -> None:
    store = MemoryStore(1_000_000, 60, lambda: 0.0)
    conversation = Conversation(store, "ann", BodyBudget(Settings()), Settings())
    fields = asked(SAID)
    parsed = await conversation.read(json.dumps(fields).encode())
    answer = {"id": "resp_1", "output": [{"type": "message", "id": "msg_1", "content": SAID}]}
    await conversation.keep(json.dumps(answer).encode())
    kept = await store.get("ann", "resp_1")
    assert kept is not None
    assert SAID.encode() in kept.input
    for thing in (parsed, conversation, kept, store, RESPONSES.stream_encoder(parsed)):
        assert SAID not in f"{thing} {thing!r}"
