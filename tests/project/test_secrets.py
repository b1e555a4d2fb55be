"""No key is ever shown: in no log, error, answer, page or table."""

from __future__ import annotations

import asyncio
import copy
import dataclasses
import json
import logging
import os
import pickle
import sys
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from endpoints import Able
from fakes import HELLO, make_instance, serving
from processes import process

from nexus_gateway.provider import Account, HttpRequest
from nexus_gateway.secret import Secret
from nexus_gateway.settings import Settings
from nexus_gateway.testing.reply import Reply
from nexus_gateway.testing.upstream import FakeUpstream

SECRETS = {
    "GROQ_KEY_1": "gsk-aaaaaaaaaaaa-1111111111",
    "GROQ_KEY_2": "gsk-bbbbbbbbbbbb-2222222222",
    "CEREBRAS_API_KEY": "csk-cccccccccccc-3333333333",
    "GATEWAY_KEYS": "caller-dddddddd-4444444444",
    "ADMIN_TOKEN": "admin-eeeeeeeee-5555555555",
    "VIEWER_TOKEN": "viewer-ffffffff-6666666666",
}
SHOWN = 12


def assert_no_secret(text: str) -> None:
    for name, secret in SECRETS.items():
        assert secret[:SHOWN] not in text, name


NAMES = {
    "Groq (Key #1)": SECRETS["GROQ_KEY_1"],
    "Groq (Key #2)": SECRETS["GROQ_KEY_2"],
    "Cerebras (Key #1)": SECRETS["CEREBRAS_API_KEY"],
}


def failures(key: str, last: int) -> list[Reply]:
    """Return a failure of every kind, each repeating the key of the request."""
    part = f"{key[:20]}****"
    echo = {"message": f"Refused with the key {key}", "param": part, "code": key}
    html = f"<h1>{key}</h1>".encode()
    event = f'data: {{"error": {{"message": "not with {key}"}}}}\n\n'.encode()
    late = b'data: {"choices":[{"delta":{"content":"a"}}]}\n\n' + b": x\n\n" * 9999 + event
    return [
        *[Reply(status=s, error=echo) for s in (400, 404, 422, 500, 503)],
        Reply(status=302, headers={"Location": f"http://127.0.0.1:9/?key={key}"}),
        Reply(status=500, body=html, content_type="text/html"),
        Reply(body=html, content_type="text/html"),
        *[Reply(body=b, content_type="text/event-stream") for b in (event, late)],
        *[Reply(hang=True), Reply(reset=True), Reply(error_after=2), Reply(cut_after=2)],
        Reply(status=last, error=echo),
    ]


@pytest.mark.proves("S-06")
@pytest.mark.parametrize(("style", "direct"), [("text", "true"), ("json", "false")])
async def test_failures_expose_no_key(
    upstream: FakeUpstream, tmp_path: Path, style: str, direct: str
) -> None:
    urls = {f"{n}_BASE_URL": upstream.base_url for n in ("GROQ", "CEREBRAS")}
    limits = {"FIRST_TOKEN_TIMEOUT_MS": "1000", "LOG_LEVEL": "debug", "LOG_FORMAT": style}
    limits |= {"MAX_ATTEMPTS": "1", "DIRECT_PATH": direct, "RESPONSE_TIMEOUT_MS": "1000"}
    seen: list[str] = []
    async with (
        process(tmp_path, **SECRETS, **urls, **limits) as gateway,
        aiohttp.ClientSession() as session,
    ):

        async def ask(path: str, token: str, **more: Any) -> None:
            body = {**HELLO, "max_tokens": 9, **more}
            head = {"Authorization": f"Bearer {token}", "X-Request-Id": token}
            async with session.post(gateway.url + path, json=body, headers=head) as response:
                echoed = str(response.headers).replace(token, "")  # the caller's own request id
                seen.extend([await response.text(), echoed])

        for (name, key), last in zip(NAMES.items(), (401, 402, 429), strict=True):
            for number, reply in enumerate(failures(key, last)):
                upstream.script(reply, key=key)
                before = upstream.hits(key)
                path = "/v1/messages" if number % 5 == 4 else "/v1/chat/completions"
                await ask(path, SECRETS["GATEWAY_KEYS"], model=name, stream=True)
                # A reset of an idle connection may be retried once.
                assert upstream.hits(key) - before in ((1, 2) if reply.reset else (1,))
                await ask(path, SECRETS["GATEWAY_KEYS"], model=name)  # keeps the circuit closed
            await ask("/v1/chat/completions", key, model=name)
        for name in ("ADMIN_TOKEN", "VIEWER_TOKEN"):
            head = {"Authorization": f"Bearer {SECRETS[name]}"}
            await ask("/v1/providers/toggle", SECRETS[name])
            for path in ("/metrics", "/v1/providers", "/v1/usage"):
                async with session.get(gateway.url + path, headers=head) as response:
                    seen.append(await response.text())
            async with session.get(gateway.url + "/v1/events", headers=head) as response:
                seen.append((await response.content.readline()).decode())
                seen.append((await response.content.readline()).decode())
        async with session.get(gateway.url + "/health") as response:
            seen.append(await response.text())
    seen += gateway.log
    assert sum("parked" in line for line in gateway.log) == 1
    assert_no_secret("\n".join(seen))
    assert os.listdir(tmp_path) == []  # keys are only in memory


async def command(folder: Path, name: str, env: dict[str, str]) -> tuple[int | None, str]:
    started = await asyncio.create_subprocess_exec(
        *[sys.executable, "-m", "nexus_gateway", name],
        cwd=folder,
        env={**os.environ, **env},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    out, _ = await asyncio.wait_for(started.communicate(), 30)
    return started.returncode, out.decode()


@pytest.mark.proves("S-06")
async def test_check_and_providers_show_no_key(upstream: FakeUpstream, tmp_path: Path) -> None:
    env = {**SECRETS, "GROQ_BASE_URL": upstream.base_url, "CEREBRAS_BASE_URL": upstream.base_url}
    code, out = await command(tmp_path, "providers", env)
    assert code == 0
    assert "nexus_gateway_plugins.groq:Groq" in out
    assert_no_secret(out)
    upstream.defaults[SECRETS["GROQ_KEY_2"]] = Reply(status=401)
    code, out = await command(tmp_path, "check", env)
    assert code == 1
    assert out.count(" ok ") == 2
    assert "the key was refused (401)" in out
    assert_no_secret(out)


@pytest.mark.proves("S-06")
def test_representations_show_no_key() -> None:
    secret = Secret(SECRETS["GROQ_KEY_1"])
    instance = make_instance(key=secret)
    account, settings = Account(secret, "http://a"), Settings(gateway_keys=(secret,))
    http = HttpRequest("http://a", b"", {"Authorization": secret.reveal()})
    shown = [secret, instance, account, settings, http, [secret], {"key": secret}, instance.account]
    for thing in shown:
        assert_no_secret(f"{thing} {thing!r} {[thing]}" + "%s %r" % (thing, thing))  # noqa: UP031
    assert_no_secret(f"{secret:>40} {secret!s} {secret!a} {dir(secret)}")
    assert_no_secret(json.dumps({"key": secret}, default=str))
    assert not hasattr(secret, "__dict__")


@pytest.mark.proves("S-06")
@pytest.mark.parametrize(
    "serialize",
    [
        json.dumps,
        bytes,
        copy.copy,
        copy.deepcopy,
        pickle.dumps,
        lambda secret: pickle.dumps(secret, protocol=0),
        lambda secret: dataclasses.asdict(Account(secret, "")),
        lambda secret: pickle.dumps(Account(secret, "")),
    ],
)
def test_a_secret_cannot_be_serialized_or_copied(serialize: Any) -> None:
    with pytest.raises(TypeError) as raised:
        serialize(Secret(SECRETS["GROQ_KEY_1"]))
    assert_no_secret(str(raised.value))


PROMPT, ANSWER = "prompt-canary-31415", "answer-canary-27182"
REQUESTS: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {
        "messages": [{"role": "user", "content": PROMPT}],
        "tools": [{"type": "function", "function": {"name": PROMPT, "parameters": {}}}],
        "user": PROMPT,
    },
    "/v1/messages": {
        "messages": [{"role": "user", "content": PROMPT}],
        "system": PROMPT,
        "max_tokens": 9,
    },
    "/v1/responses": {"input": PROMPT, "instructions": PROMPT},
    "/v1/embeddings": {"input": PROMPT, "model": "fake"},
    "/v1/completions": {"prompt": PROMPT},
}


class Failing(Able):
    title = "Failing"

    def prepare(self, chat: Any) -> Any:
        raise KeyError("failing")


@pytest.mark.proves("S-20")
@pytest.mark.usefixtures("each_way")
async def test_no_text_of_a_conversation_is_logged(
    upstream: FakeUpstream, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("", "nexus_gateway", "aiohttp", "asyncio"):
        caplog.set_level(logging.DEBUG, logger=name)
    echo = {"message": f"Rejected: {PROMPT}", "param": PROMPT, "code": PROMPT}
    content_event = f'data: {{"choices":[{{"delta":{{"content":"{ANSWER}"}}}}]}}\n\n'.encode()
    garbage = content_event + f"data: {{{ANSWER}\n\n".encode()
    replies = [
        Reply(text=ANSWER),
        *[Reply(status=s, error=echo) for s in (400, 401, 404, 429, 500)],
        *[Reply(text=ANSWER + " a b", **{k: 1}) for k in ("cut_after", "error_after", "end_after")],
        *[Reply(body=b, content_type="text/event-stream") for b in (garbage, content_event)],
        Reply(body=ANSWER.encode(), content_type="text/html"),
        Reply(body=b'{"choices": 5, "x": "' + ANSWER.encode() + b'"}'),
    ]
    good = make_instance(upstream, provider=Able)
    async with serving(good, make_instance(upstream, 2, provider=Failing)) as served:
        for reply in replies:
            upstream.default = reply
            for path, body in REQUESTS.items():
                good.enable()
                for stream in (False, True):
                    await served.post(path, {**body, "stream": stream})
        for broken in (b'{"messages": "' + PROMPT.encode(), b'["%b"]' % PROMPT.encode()):
            await served.chat(broken)
        await served.chat({"messages": PROMPT})
        await served.chat({"messages": [{"role": PROMPT, "content": {PROMPT: PROMPT}}]})
    assert "the plugin" in caplog.text
    assert "attempt failed" in caplog.text
    lines = [f"{record.getMessage()} {vars(record)}" for record in caplog.records]
    for word in (PROMPT, ANSWER):
        assert word not in caplog.text
        assert not any(word in line for line in lines)
