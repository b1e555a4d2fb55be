"""Text of callers and upstreams cannot become a header, a log line or markup."""

from __future__ import annotations

import ast
import json
import logging
import re
from pathlib import Path
from typing import Any

import pytest
from fakes import HELLO, KEYS, make_instance, serving
from intruder import raw, request
from processes import process

from nexus_gateway.telemetry import log
from nexus_gateway.testing.reply import Reply
from nexus_gateway.testing.upstream import FakeUpstream

ROOT = Path(__file__).resolve().parents[2]
FORGED = "12:00:00 info    forged"
EVIL = f"evil\r\nX-Evil: 1\r\n\r\n\n{FORGED}\x1b[2J\x9b31m\u2028{FORGED}\u202e\x00\x7f"


@pytest.mark.proves("F35", "S-18")
@pytest.mark.usefixtures("each_way")
@pytest.mark.parametrize("stream", [False, True])
async def test_a_model_name_cannot_add_a_header(upstream: FakeUpstream, stream: bool) -> None:
    async with serving(make_instance(upstream)) as served:
        for reply in (Reply(), Reply(status=400), Reply(status=500)):
            upstream.default = reply
            body = {**HELLO, "model": f"fake/{EVIL}", "stream": stream}
            _, _, headers = await served.chat(body)
            assert "X-Evil" not in headers
            assert headers["X-Nexus-Model"].startswith("evil??X-Evil: 1??")
            assert headers["X-Nexus-Model"].isascii()
            assert headers["X-Nexus-Model"].isprintable()
    assert upstream.requests[0].body["model"] == EVIL


@pytest.mark.proves("F35")
@pytest.mark.usefixtures("each_way")
async def test_an_upstreams_text_cannot_add_a_header(upstream: FakeUpstream) -> None:
    error = {"message": EVIL, "code": EVIL, "type": EVIL, "param": EVIL}
    async with serving(make_instance(upstream), max_attempts=1, strict_models=True) as served:
        for reply in (Reply(model=EVIL), Reply(status=400, error=error)):
            upstream.default = reply
            for stream in (False, True):
                _, text, headers = await served.chat(stream=stream)
                assert "X-Evil" not in headers
                assert "\x1b" not in text
        status, text, headers = await served.chat({**HELLO, "model": EVIL})
        assert (status, "X-Evil" in headers) == (404, False)


INVALID_IDS = [
    b"a b",
    b"a\tb",
    b"\xff\xfe",
    "ключ".encode(),
    b"x" * 65,
    b"",
    b"../../etc/passwd",
    b"<script>",
    b"a;b",
    b'a"b',
    b"%0d%0aX-Evil: 1",
]


@pytest.mark.proves("S-19", "F35")
@pytest.mark.parametrize("id", INVALID_IDS, ids=lambda value: ascii(value)[:16])
async def test_an_invalid_request_id_is_not_echoed(upstream: FakeUpstream, id: bytes) -> None:
    head = b"GET %b HTTP/1.1\r\nHost: x\r\nX-Request-Id: %b\r\nConnection: close\r\n\r\n"
    async with serving(make_instance(upstream)) as served:
        for path in (b"/v1/models", b"/nowhere", b"/health"):
            _, head_of_answer, _ = await raw(served.url, head % (path, id))
            assert re.search(rb"\r\nX-Request-Id: req-[0-9a-f]{24}(\r\n|$)", head_of_answer)


@pytest.mark.proves("F35", "F36")
@pytest.mark.parametrize("name", ["X-Routing-Mode", "X-Request-Id", "Authorization", "Origin"])
@pytest.mark.parametrize("end", ["\r", "\n", "\0", "\r\n "])
async def test_a_line_end_in_a_header_is_rejected_or_harmless(
    upstream: FakeUpstream, name: str, end: str
) -> None:
    async with serving(make_instance(upstream)) as served:
        body = json.dumps(HELLO).encode()
        line = "POST /v1/chat/completions"
        status, head, _ = await raw(
            served.url, request(line, f"{name}: a{end}X-Evil: 1", body=body)
        )
    assert status in (200, 400)
    assert b"X-Evil" not in head


NOT_HTTP = [
    b"GARBAGE\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
    b"GET / HTTP/1.1\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
    b"GET /canary\x00 HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: x\r\ncanary\x01: a\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: x\r\ncanary : a\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: x\r\nA: " + b"canary" * 2000 + b"\r\n\r\n",
    b"GET /" + b"canary" * 2000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
    b"canary / HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET / HTTP/9.9\r\nHost: canary\r\n\r\n",
    b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: canary\r\n\r\n",
    b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: canary\r\n\r\n",
]


@pytest.mark.proves("S-08", "S-15", "F36")
@pytest.mark.parametrize("sent", NOT_HTTP, ids=lambda sent: ascii(sent[:24]))
async def test_invalid_http_gets_the_gateways_own_error(
    upstream: FakeUpstream, sent: bytes
) -> None:
    async with serving(make_instance(upstream)) as served:
        status, head, body = await raw(served.url, sent)
        assert (await raw(served.url, request("GET /health/live")))[0] == 200
    error = json.loads(body)["error"]
    assert status in (400, 431)
    assert error["type"] == "invalid_request_error"
    assert error["code"] in ("bad_http", None)
    assert b"X-Request-Id: req-" in head
    for word in (b"canary", b"aiohttp", b"python", b"expected", b"0x", b"bytearray"):
        assert word not in (head + body).lower()


@pytest.mark.proves("S-08")
def test_no_error_contains_an_exceptions_text() -> None:
    safe = {"JSONError", "InvalidQuery"}  # the gateway wrote their texts
    for path in (ROOT / "nexus_gateway").rglob("*.py"):
        if path.parent.name in ("cli", "testing"):
            continue
        for handler in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(handler, ast.ExceptHandler) or not handler.name:
                continue
            kinds = ast.unparse(handler.type) if handler.type else ""
            if any(name in kinds for name in safe):
                continue
            for raised in ast.walk(handler):
                if isinstance(raised, ast.Raise) and isinstance(raised.exc, ast.Call):
                    shown = [ast.unparse(a) for a in raised.exc.args]
                    if f"str({handler.name})" in shown and kinds in (
                        "InvalidAnswer",
                        "BrokenStream",
                    ):
                        continue  # the gateway wrote these texts too
                    for text in shown:
                        assert f"{{{handler.name}}}" not in text, f"{path.name}: {text}"
                        assert f"str({handler.name})" not in text, f"{path.name}: {text}"


@pytest.mark.proves("S-18")
@pytest.mark.parametrize("style", ["text", "json"])
async def test_a_caller_cannot_forge_a_log_line(
    upstream: FakeUpstream, tmp_path: Path, style: str
) -> None:
    env = {"GROQ_KEY_1": KEYS[0], "GROQ_BASE_URL": upstream.base_url, "LOG_LEVEL": "debug"}
    async with process(tmp_path, **env, LOG_FORMAT=style, MAX_ATTEMPTS="1") as gateway:
        for model in (f"groq/{EVIL}", EVIL, f"groq/{'x' * 5000}"):
            for reply in (Reply(), Reply(status=404, error={"message": EVIL}), Reply(status=500)):
                upstream.default = reply
                body = json.dumps({**HELLO, "model": model}).encode()
                await raw(gateway.url, request("POST /v1/chat/completions", body=body))
        for line in ("GET /%0a12:00:00%20info%20forged%1b[2J", "GET /v1/models/%0a%1b[2J"):
            await raw(gateway.url, request(line, "X-Request-Id: a b", "X-Routing-Mode: \x1b[2J"))
        assert b"bad_http" in (await raw(gateway.url, NOT_HTTP[4]))[2]
        await raw(gateway.url, b"GET /\x1b[2J\r\n12:00:00 info forged\r\n\r\n")
    logged = "".join(gateway.log).rpartition("Try it:")[2].splitlines()[1:]
    written = [line for line in logged if line and "curl" not in line]
    assert len(written) >= 9
    for line in written:
        assert line.isprintable()
        assert not line.startswith(FORGED)
        assert len(line) < 800
        assert style == "text" or json.loads(line)["level"]


@pytest.mark.proves("S-18")
@pytest.mark.parametrize("style", ["text", "json"])
def test_an_exceptions_text_cannot_forge_a_log_line(style: str) -> None:
    formatter = log.LineFormatter(style, [])
    try:
        raise RuntimeError(f"{EVIL}\n{FORGED}\n" + "x" * 5000)
    except RuntimeError as error:
        exc_info: Any = (RuntimeError, error, error.__traceback__)
    record = logging.LogRecord("nexus_gateway", logging.ERROR, "", 0, f"it {EVIL}", None, exc_info)
    first, *others = formatter.format(record).split("\n")
    assert "RuntimeError" in formatter.format(record)
    for line in (first, *others):
        assert line.isprintable()
        assert style == "json" or len(line) <= 500
    assert "Traceback" in (first if style == "json" else others[0])
    assert all(line.startswith("    ") for line in others)
