"""The mock: the effect of each fault on a plain client, the syntax and the control of faults."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
import time
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from random import Random
from typing import Any

import aiohttp
import pytest
from fakes import serving
from raw import asking

from nexus_gateway.cli.main import main
from nexus_gateway.routing.pool import build_pool
from nexus_gateway.testing.faults import (
    FAULTS,
    Fault,
    WrongFault,
    apply,
    assign,
    read_faults,
    shown,
)
from nexus_gateway.testing.mock import MODEL, Mock, Step, read_script
from nexus_gateway.testing.reply import Reply

TEXT = "one two three four five"
SOON_S = 0.3


@pytest.fixture
async def mock() -> AsyncIterator[Mock]:
    async with Mock(3) as server:
        yield server


async def call(
    mock: Mock, path: str, body: Any = None, *, number: int = 1, key: str = "", method: str = "GET"
) -> tuple[int, str, Mapping[str, str]]:
    url = f"http://127.0.0.1:{mock.instances[number - 1].port}{path}"
    head = {"Authorization": f"Bearer {key}"} if key else {}
    async with (
        aiohttp.ClientSession() as session,
        session.request(method, url, json=body, headers=head, allow_redirects=False) as response,
    ):
        return response.status, await response.text(), response.headers.copy()


async def chat(
    mock: Mock, *, stream: bool = True, text: str = TEXT, **more: Any
) -> tuple[int, str, Mapping[str, str]]:
    body = {"stream": stream, "messages": [{"role": "user", "content": text}]}
    return await call(mock, "/v1/chat/completions", body, method="POST", **more)


def content(text: str) -> str:
    events = [e.removeprefix("data: ") for e in text.split("\n\n") if e.startswith('data: {"')]
    deltas = [c["delta"] for e in events for c in json.loads(e).get("choices", [])]
    return "".join(delta.get("content", "") for delta in deltas)


@pytest.mark.parametrize("text", [TEXT, "with  two spaces\nand a line", "🙂 \u2028 世界"])
async def test_the_answer_is_the_last_message(mock: Mock, text: str) -> None:
    _, answer, _ = await chat(mock, text=text)
    assert content(answer) == text
    assert answer.endswith("data: [DONE]\n\n")
    _, answer, _ = await chat(mock, text=text, stream=False)
    choice = json.loads(answer)["choices"][0]
    assert (choice["message"]["content"], choice["finish_reason"]) == (text, "stop")


@pytest.mark.parametrize("body", [[], {}, {"messages": 3}, {"messages": [None]}, "no"])
async def test_unusual_requests_are_answered(mock: Mock, body: Any) -> None:
    status, *_ = await call(mock, "/v1/chat/completions", body, method="POST")
    assert status == (200 if isinstance(body, dict) else 400)


@pytest.mark.parametrize("words", [1, 3, 5])
async def test_a_broken_answer_is_continued(mock: Mock, words: int) -> None:
    mock.set(1, {"cut": words})
    pool = build_pool(mock.environment(), time.monotonic)
    async with serving(*pool.instances[:2], resume=True) as served:
        body = {"stream": True, "messages": [{"role": "user", "content": TEXT}]}
        _, answer, _ = await served.chat(body, headers={"X-Routing-Mode": "round-robin"})
    assert (": resumed by" in answer, content(answer)) == (True, TEXT)
    assert answer.endswith("data: [DONE]\n\n")


async def test_a_request_is_assigned_by_its_key_then_by_its_port(mock: Mock) -> None:
    await chat(mock, number=1, key="mock-key-2")
    await chat(mock, number=3, key="another")
    await chat(mock, number=3)
    assert [instance.requests for instance in mock.instances] == [0, 1, 2]


# What a client receives: a status, the start of the text, or an error.
RECEIVED: dict[str, Any] = {
    "errors=1": 500,
    "status=529": 529,
    "429=7": 429,
    "401": 401,
    "redirect": 302,
    "html": "<!doctype",
    "empty": "",
    "hang": TimeoutError,
    "reset": aiohttp.ClientError,
    "close": aiohttp.ClientError,
    "tls": aiohttp.ClientError,
    "role-hang": TimeoutError,
    "comments": TimeoutError,
    "cut=2": aiohttp.ClientError,
    "end=2": "one two",
    "stall=2": TimeoutError,
    "error-event=2": "one two",
    "garbage=2": TEXT,
    "oversized=100000": TEXT,
    "delay=1": TEXT,
    "jitter=1": TEXT,
    "drip=1": TEXT,
    "bytewise": TEXT,
    "crlf": TEXT,
    "no-done": TEXT,
    "again": TEXT,
    "silent": TEXT,  # by its port
    "chance=0": TEXT,
}


@pytest.mark.parametrize("stream", [True, False])
async def test_again_sends_two_answers_of_which_one_belongs_to_nobody(
    mock: Mock, stream: bool
) -> None:
    mock.set(1, {"again": None})
    reader, writer = await asyncio.open_connection("127.0.0.1", mock.instances[0].port)
    writer.write(asking(b"Connection: close", stream=stream))
    answers = (await reader.read()).split(b"HTTP/1.1 200 OK")
    writer.close()
    assert len(answers) == 3
    assert [b"someone else" in answer for answer in answers[1:]] == [False, True]


def test_silent_is_part_of_the_address() -> None:
    mock = Mock(2)
    mock.set(2, {"silent": None})
    assert ["mock-2.silent.invalid" in mock.url(number) for number in (1, 2)] == [False, True]


def test_every_fault_is_tested() -> None:
    assert {item.partition("=")[0] for item in RECEIVED} == {fault.name for fault in FAULTS}


@pytest.mark.parametrize(("item", "received"), RECEIVED.items(), ids=RECEIVED)
async def test_each_fault_has_its_effect(mock: Mock, item: str, received: Any) -> None:
    mock.set(2, assign([item], 1)[1])
    request = asyncio.wait_for(chat(mock, number=2), SOON_S if received is TimeoutError else 5)
    if isinstance(received, type):
        with pytest.raises(received):
            await request
        return
    status, text, headers = await request
    if isinstance(received, int):
        assert status == received
    elif item in ("html", "empty"):
        assert (status, text[:9].lower()) == (200, received)
    else:
        assert (status, content(text.replace("\r\n", "\n"))) == (200, received)
    name = item.partition("=")[0]
    assert (name in mock.instances[1].hit) is (name != "chance")
    assert headers.get("Retry-After") == ("7" if status == 429 else None)
    assert (await chat(mock, number=1))[0] == 200


@pytest.mark.parametrize(
    ("item", "received"),
    [
        ("cut", aiohttp.ClientError),
        ("stall", TimeoutError),
        ("comments", TimeoutError),
        ("end", '{"id"'),
        ("garbage", '{"id"'),
        ("error-event", '{"error"'),
    ],
)
async def test_faults_affect_an_answer_that_is_not_streamed(
    mock: Mock, item: str, received: Any
) -> None:
    mock.set(1, assign([item], 1)[1])
    request = chat(mock, stream=False)
    if isinstance(received, type):
        with pytest.raises(received):
            await asyncio.wait_for(request, SOON_S)
        return
    _, text, _ = await request
    assert text.startswith(received)
    assert "choices" not in text or not text.endswith("}")


async def test_a_tls_client_receives_an_alert(mock: Mock) -> None:
    mock.set(1, {"tls": None})
    assert mock.environment()["LOCAL_BASE_URL_1"].startswith("https://")
    async with aiohttp.ClientSession() as session:
        with pytest.raises(aiohttp.ClientConnectorSSLError):
            await session.get(mock.url(1))


async def test_faults_can_be_changed_while_it_runs(mock: Mock) -> None:
    status, text, _ = await call(mock, "/faults/2", {"status": 503, "cut": None}, method="PUT")
    assert (status, json.loads(text)) == (200, {"1": {}, "2": {"status": 503, "cut": 3}, "3": {}})
    assert (await chat(mock, number=2))[0] == 503
    await call(mock, "/faults", {"delay": 1}, method="PUT", number=3)
    _, text, _ = await call(mock, "/faults", number=2)
    assert json.loads(text) == {n: {"delay": 1} for n in "123"}
    await call(mock, "/faults/1", method="DELETE")
    _, text, _ = await call(mock, "/stats")
    stats = json.loads(text)
    assert stats["1"]["faults"] == {}
    assert stats["2"]["hit"] == {"cut": 1, "status": 1}
    assert (stats["2"]["requests"], stats["2"]["open"]) == (1, 0)


@pytest.mark.parametrize("body", [[], {"nope": 1}, {"cut": -1}, {"html": 3}, {"status": "x"}])
async def test_wrong_faults_change_nothing_and_are_explained(mock: Mock, body: Any) -> None:
    mock.set(2, {"delay": 1})
    status, text, _ = await call(mock, "/faults/2", body, method="PUT")
    assert status == 400
    assert len(json.loads(text)["error"].splitlines()) == 1
    assert mock.instances[1].faults == {"delay": 1}
    assert (await call(mock, "/faults/9", method="DELETE"))[0] == 404


def test_faults_apply_to_all_or_to_one() -> None:
    assigned = assign(["delay=200", "2:status=500", "2:delay=1", "3:ok"], 3)
    assert assigned == {
        1: {"delay": 200},
        2: {"delay": 1, "status": 500},
        3: {"delay": 200},
    }
    assert assign(["2:cut"], 3) == {2: {"cut": 3}}
    assert assign(["ok"], 2) == {1: {}, 2: {}}


@pytest.mark.parametrize(
    "item",
    [
        *("", "nope", "cut=x", "cut=-1", "cut=1.5", "html=1", "4:cut", "0:cut", "chance=2"),
        *("ok=1", "status=600", "delay=nan", "delay=inf", "cut=" + "9" * 400, "a b", "redirect="),
    ],
)
def test_wrong_syntax_is_explained_in_one_line(item: str) -> None:
    with pytest.raises(WrongFault) as error:
        assign([item], 3)
    assert len(str(error.value).splitlines()) == 1
    assert len(str(error.value)) < 400


def test_fault_values_are_read_from_json() -> None:
    assert read_faults({"hang": True, "cut": None, "429": 0.5}) == {
        "hang": None,
        "cut": 3,
        "429": 0.5,
    }
    with pytest.raises(WrongFault):
        read_faults({"hang": False})


def test_delays_add_up_and_chance_depends_on_the_seed() -> None:
    reply = apply(Reply(), {"delay": 100, "jitter": 50, "cut": 2}, Random(1))
    assert 0.1 < reply.head_delay_s <= 0.15
    assert reply.cut_after == 2

    def hit(seed: int) -> list[bool]:
        instance = Mock(1, seed=seed).instances[0]
        instance.faults = {"hang": None, "chance": 0.5}
        return [bool(instance.draw()) for _ in range(50)]

    assert hit(1) == hit(1) != hit(2)
    assert 10 < sum(hit(1)) < 40


def test_a_script_is_parsed() -> None:
    text = "# comment\n\n10s 2:status=500 # more\n0.5s delay=1\n200requests ok 1:cut\n"
    assert read_script(text, 2) == [
        Step(after_s=10, faults={2: {"status": 500}}),
        Step(after_s=0.5, faults={1: {"delay": 1}, 2: {"delay": 1}}),
        Step(after_requests=200, faults={1: {"cut": 3}, 2: {}}),
    ]


@pytest.mark.parametrize("line", ["10s", "x cut", "1.5requests cut", "1s nope", "10 s cut"])
def test_a_wrong_line_of_a_script_is_reported(line: str) -> None:
    with pytest.raises(WrongFault, match="^line 2: "):
        read_script(f"1s ok\n{line}\n", 2)


async def test_a_script_is_run(mock: Mock) -> None:
    playing = asyncio.create_task(mock.play(read_script("2requests status=500\n0.01s ok", 3)))
    statuses = [(await chat(mock))[0] for _ in range(2)]
    await asyncio.wait_for(playing, 5)
    assert statuses == [200, 200]
    assert mock.instances[0].faults == {}
    mock.set(1, {})
    playing = asyncio.create_task(mock.play(read_script("1requests status=500", 3)))
    await asyncio.sleep(0)
    await chat(mock)
    await asyncio.wait_for(playing, 5)
    assert (await chat(mock))[0] == 500


@pytest.mark.parametrize(
    "options",
    [
        ["--fault", "nope"],
        ["--fault", "2:cut"],
        ["--script", "not-there"],
        ["--port", "65535", "--instances", "2"],
    ],
)
def test_wrong_options_are_one_line_and_exit_2(
    options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["mock", *options]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_help_lists_every_fault(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match=r"^0$"):
        main(["mock", "--help"])
    text = capsys.readouterr().out
    assert all(f"\n  {fault.name}" in text and fault.help in text for fault in FAULTS)


async def test_the_command_prints_the_variables_for_a_gateway(tmp_path: Path) -> None:
    (tmp_path / "script").write_text("1requests 1:status=418\n")
    options = ["--port", "0", "--instances", "2", "--fault", "2:401", "--script", "script"]
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "nexus_gateway", "mock", *options),
        cwd=tmp_path,
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stderr is not None
    try:
        screen = ""
        while "/stats" not in screen:
            line = (await asyncio.wait_for(process.stderr.readline(), 30)).decode()
            assert line, screen
            screen += line
        env = dict(word.split("=", 1) for word in screen.split() if word.startswith("LOCAL_"))
        assert (env["LOCAL_KEY_2"], env["LOCAL_MODEL_1"]) == ("mock-key-2", MODEL)
        async with aiohttp.ClientSession() as session:
            statuses = []
            for number in (2, 1):
                url = env[f"LOCAL_BASE_URL_{number}"] + "/chat/completions"
                async with session.post(url, json={"stream": False}) as response:
                    statuses.append(response.status)
        assert statuses == [401, 418]
        process.send_signal(signal.SIGTERM)
        rest = (await asyncio.wait_for(process.stderr.read(), 10)).decode()
        assert await asyncio.wait_for(process.wait(), 10) == 0
        assert "status: 1" in rest
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_each_fault_is_documented(fault: Fault) -> None:
    text = (Path(__file__).resolve().parents[2] / "docs" / "faults.md").read_text("utf-8")
    default = f"`{shown(fault.default)}`" if fault.value else ""
    assert f"| `{fault.syntax}` | {fault.help} | {default} |" in text
