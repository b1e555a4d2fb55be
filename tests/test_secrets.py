"""No key ever shows: not in a log, an error, an answer, a page or a table."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path

import aiohttp
import pytest
from conftest import HELLO, make_instance
from processes import process

from nexus_gateway.secret import Secret
from nexus_gateway.testing import FakeUpstream, Reply

SECRETS = {
    "GROQ_KEY_1": "gsk-aaaaaaaaaaaa-1111111111",
    "GROQ_KEY_2": "gsk-bbbbbbbbbbbb-2222222222",
    "CEREBRAS_API_KEY": "csk-cccccccccccc-3333333333",
    "GATEWAY_KEYS": "caller-dddddddd-4444444444",
    "ADMIN_TOKEN": "admin-eeeeeeeee-5555555555",
}
SHOWN = 12


def assert_silent(text: str) -> None:
    for name, secret in SECRETS.items():
        assert secret[:SHOWN] not in text, name


@pytest.mark.parametrize("style", ["text", "json"])
async def test_a_gateway_in_trouble_keeps_its_keys(
    upstream: FakeUpstream, tmp_path: Path, style: str
) -> None:
    echo = {"message": f"Incorrect API key provided: {SECRETS['GROQ_KEY_1']}"}
    upstream.script(
        *[Reply(status=s, error=echo) for s in (401, 403, 429, 500)],
        Reply(hang=True),
        Reply(reset=True),
        Reply(error_after=2, delay_s=0.01),
    )
    urls = {f"{n}_BASE_URL": upstream.base_url for n in ("GROQ", "CEREBRAS")}
    limits = {"FIRST_TOKEN_TIMEOUT_MS": "200", "LOG_LEVEL": "debug", "LOG_FORMAT": style}
    seen: list[str] = []
    async with (
        process(tmp_path, **SECRETS, **urls, **limits) as gateway,
        aiohttp.ClientSession() as session,
    ):
        for _ in range(8):
            for token in (SECRETS["GATEWAY_KEYS"], SECRETS["GROQ_KEY_1"]):
                headers = {"Authorization": f"Bearer {token}"}
                url = gateway.url + "/v1/chat/completions"
                async with session.post(url, json=HELLO, headers=headers) as response:
                    seen += [await response.text(), str(response.headers)]
        admin = {"Authorization": f"Bearer {SECRETS['ADMIN_TOKEN']}"}
        async with session.get(gateway.url + "/v1/events", headers=admin) as response:
            seen.append((await response.content.readline()).decode())
            seen.append((await response.content.readline()).decode())
        async with session.get(gateway.url + "/health") as response:
            seen.append(await response.text())
    seen += gateway.log
    assert any("parked" in line for line in gateway.log)
    assert_silent("\n".join(seen))


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


async def test_check_and_providers(upstream: FakeUpstream, tmp_path: Path) -> None:
    env = {**SECRETS, "GROQ_BASE_URL": upstream.base_url, "CEREBRAS_BASE_URL": upstream.base_url}
    code, out = await command(tmp_path, "providers", env)
    assert code == 0
    assert "nexus_gateway_plugins.groq:Groq" in out
    assert_silent(out)
    code, out = await command(tmp_path, "check", env)
    assert code == 0
    assert out.count(" ok ") == 3
    assert_silent(out)
    upstream.defaults[SECRETS["GROQ_KEY_2"]] = Reply(status=401)
    code, out = await command(tmp_path, "check", env)
    assert code == 1
    assert "the key was refused (401)" in out
    assert_silent(out)


def test_an_instance_and_a_secret_show_nothing() -> None:
    secret = Secret(SECRETS["GROQ_KEY_1"])
    instance = make_instance(key=secret)
    assert_silent(f"{secret} {secret!r} {secret:>40} {instance} {instance!r} {[secret]}")
    with pytest.raises(TypeError):
        json.dumps({"key": secret})
