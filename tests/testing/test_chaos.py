"""The chaos campaign: its plan, its verdicts, and that a gateway can pass or fail it."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from nexus_gateway.cli.chaos import report
from nexus_gateway.cli.main import main
from nexus_gateway.errors import error_object
from nexus_gateway.testing.chaos import bodies, campaign, plan
from nexus_gateway.testing.chaos.campaign import (
    Campaign,
    GatewayProcess,
    gateway,
    isolated,
    run,
    run_against,
)
from nexus_gateway.testing.chaos.judge import (
    Answer,
    Broken,
    Ending,
    Tally,
    judge,
    judge_body,
    percentile,
)
from nexus_gateway.testing.chaos.plan import MENU, ChatRequest, Round, planned_request, rounds
from nexus_gateway.testing.faults import CHANCE, FAULTS, Faults, read_faults
from nexus_gateway.testing.mock import KEY, Mock

# With this seed nothing hangs, so the limits can be long for a busy machine.
PATIENT = {
    "FIRST_TOKEN_TIMEOUT_MS": "5000",
    "IDLE_TIMEOUT_MS": "5000",
    "RESPONSE_TIMEOUT_MS": "20000",
}
SEED = 31


@pytest.fixture(autouse=True)
def few_authorities(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let each process read a single authority, as this one does: see `running`."""
    monkeypatch.setattr(campaign, "_KEPT", (*campaign._KEPT, "SSL_CERT_FILE"))


def quiet(line: str) -> None:
    pass


def chat_request(text: str = "one two", *, stream: bool = True) -> ChatRequest:
    return ChatRequest(1, text, stream, {}, None, None)


def chunk(content: str | None = None, finish: str | None = None) -> str:
    delta = {} if content is None else {"content": content}
    return json.dumps({"choices": [{"index": 0, "delta": delta, "finish_reason": finish}]})


def sse(*data: str) -> str:
    return "".join(f"data: {one}\n\n" for one in data)


def completion(text: str) -> str:
    choice = {"message": {"content": text}, "finish_reason": "stop"}
    return json.dumps({"choices": [choice]})


ERROR = error_object("It broke.", kind="server_error", code="broken")
ERROR_TEXT = json.dumps(ERROR)
FULL = error_object("It is full.", kind="server_error", code="overloaded")
NEVER = error_object("Tried: X: no answer in 10000 ms.", kind="server_error")
END = (chunk(finish="stop"), "[DONE]")


@pytest.mark.parametrize(
    ("body", "ending"),
    [
        (sse(chunk("one"), chunk(" two"), *END), Ending.WHOLE),
        (": keep-alive\n\n" + sse(chunk("one two"), *END), Ending.WHOLE),
        (sse(chunk("one"), ERROR_TEXT), Ending.REPORTED),
        (sse(chunk("one"), *END), Broken.SILENT),
        (sse(chunk("one")), Broken.SILENT),
        (sse(chunk("one two")), Broken.SILENT),
        (sse(chunk("one two"), "[DONE]"), Broken.SILENT),
        (sse(chunk("one two"), chunk(finish="stop")), Broken.SILENT),
        (sse(chunk("one two"), *END)[:-1], Broken.SILENT),
        ("", Broken.SILENT),
        (sse(chunk("one"), chunk("one two"), *END), Broken.WRONG),
        (sse(chunk("one two"), *END, "[DONE]"), Broken.WRONG),
        (sse(chunk("one two"), *END, chunk("more")), Broken.WRONG),
        (sse(chunk("another"), ERROR_TEXT), Broken.WRONG),
        (sse(chunk("one"), ERROR_TEXT, "[DONE]"), Broken.WRONG),
        (sse("{not json"), Broken.WRONG),
        ("event: x\n\n", Broken.WRONG),
        (sse(chunk("")) + sse(ERROR_TEXT), Broken.AVOIDABLE),
        (sse(chunk("one"), '{"error":"no"}'), Broken.NO_ERROR_SHAPE),
    ],
)
def test_a_stream_is_judged(body: str, ending: Ending | Broken) -> None:
    assert judge(chat_request(), Answer(200, body)).ending is ending


@pytest.mark.parametrize(
    ("answer", "ending"),
    [
        (Answer(200, completion("one two")), Ending.WHOLE),
        (Answer(200, completion("one")), Broken.WRONG),
        (Answer(200, completion("one twoone two")), Broken.WRONG),
        (Answer(200, completion("one two")[:-5]), Broken.WRONG),
        (Answer(200, "<html>"), Broken.WRONG),
        (Answer(503, ERROR_TEXT), Broken.AVOIDABLE),
        (Answer(429, ERROR_TEXT), Broken.AVOIDABLE),
        (Answer(503, json.dumps(NEVER)), Ending.NOT_ANSWERED),
        (Answer(401, ERROR_TEXT), Broken.KEY_REFUSED),
        (Answer(403, ERROR_TEXT), Broken.KEY_REFUSED),
        (Answer(500, ERROR_TEXT), Broken.OWN_FAULT),
        (Answer(503, '{"error":"no"}'), Broken.NO_ERROR_SHAPE),
        (Answer(502, "<html>"), Broken.NO_ERROR_SHAPE),
        (Answer(503, '{"error":{"message":"","type":"x","param":null,"code":null}}'), Broken),
        (Answer(200, "x", late=True), Broken.HANG),
        (Answer(200, "x", connection_error="ClientPayloadError"), Broken.DROPPED),
        (Answer(503, json.dumps({**ERROR, "key": f"{KEY}1"})), Broken.KEY_EXPOSED),
        (Answer(200, completion("one two"), headers=f"X: {KEY}1"), Broken.KEY_EXPOSED),
    ],
)
def test_an_answer_is_judged(answer: Answer, ending: Any) -> None:
    judged = judge(chat_request(stream=False), answer, KEY).ending
    assert judged is (Broken.NO_ERROR_SHAPE if ending is Broken else ending)


@pytest.mark.parametrize(
    ("answer", "ending"),
    [
        *((Answer(status, ERROR_TEXT), Ending.REFUSED) for status in (400, 402, 403, 429, 503)),
        *((Answer(status, ERROR_TEXT), Broken.WRONG) for status in (401, 500, 502)),
        (Answer(200, completion("one two")), Broken.NO_ERROR_SHAPE),
        (Answer(403, "<html>"), Broken.NO_ERROR_SHAPE),
    ],
)
def test_a_refusal_of_what_every_instance_refuses_is_judged(answer: Answer, ending: Any) -> None:
    assert judge(replace(chat_request(), poison=403), answer).ending is ending


BODIES_FULL = json.dumps(error_object("Full.", kind="server_error", code="bodies_overloaded"))
RETRY = "Retry-After: 1"


@pytest.mark.parametrize(
    ("statuses", "answer", "ending"),
    [
        ({200}, Answer(200, sse(chunk("one two"), *END)), Ending.WHOLE),
        ({200}, Answer(200, sse(chunk("one"), *END)), Broken.SILENT),
        ({200}, Answer(408, ERROR_TEXT), Broken.AVOIDABLE),
        ({408}, Answer(408, ERROR_TEXT), Ending.TOO_MUCH),
        ({408}, Answer(413, ERROR_TEXT), Broken.AVOIDABLE),
        ({408}, Answer(408, "<html>"), Broken.NO_ERROR_SHAPE),
        ({408}, Answer(late=True), Broken.HANG),
        ({413}, Answer(413, ERROR_TEXT), Ending.TOO_MUCH),
        ({413}, Answer(200, sse(chunk("one two"), *END)), Broken.UNLIMITED),
        ({413}, Answer(connection_error="ClientOSError"), Broken.DROPPED),
        ({200, 503}, Answer(503, BODIES_FULL, headers=RETRY), Ending.TOO_MUCH),
        ({200, 503}, Answer(503, BODIES_FULL), Broken.AVOIDABLE),
        ({200, 503}, Answer(503, ERROR_TEXT, headers=RETRY), Broken.AVOIDABLE),
    ],
)
def test_the_answer_to_a_slow_or_huge_body_is_judged(
    statuses: set[int], answer: Answer, ending: Ending | Broken
) -> None:
    assert judge_body(chat_request(), answer, statuses).ending is ending


def test_only_a_complete_answer_may_never_come() -> None:
    assert judge(chat_request(), Answer(503, json.dumps(NEVER))).ending is Broken.AVOIDABLE


def test_a_plan_depends_only_on_its_seed() -> None:
    assert rounds(500, 5, 2, 4, seed=1) == rounds(500, 5, 2, 4, seed=1)
    assert rounds(500, 5, 2, 4, seed=1) != rounds(500, 5, 2, 4, seed=2)
    assert [planned_request(n, 1) for n in range(9)] == [planned_request(n, 1) for n in range(9)]
    assert planned_request(1, 1).text != planned_request(1, 2).text
    assert len({planned_request(n, 1).text for n in range(500)}) == 500


def test_a_plan_has_each_request_once_and_each_fault_of_the_menu() -> None:
    planned = rounds(5000, 5, 2, 20, seed=3)
    assert [n for part in planned for n in range(part.first, part.end)] == [*range(5000)]
    assert all(part.first in part.phases for part in planned)
    phases = [by_instance for part in planned for by_instance in part.phases.values()]
    assert len({frozenset(by_instance) for by_instance in phases}) == 1
    assert all(len(by_instance) == 2 for by_instance in phases)
    dealt = [faults for by_instance in phases for faults in by_instance.values()]
    bare = [{k: v for k, v in faults.items() if k != CHANCE} for faults in dealt]
    assert all(item in bare for item in MENU)
    assert all(read_faults(faults) for faults in dealt)


def test_the_menu_has_every_fault() -> None:
    assert {name for item in MENU for name in item} | {CHANCE} == {f.name for f in FAULTS}


@pytest.mark.parametrize("requests", [1, 2, 3, 7])
def test_a_small_plan_is_complete(requests: int) -> None:
    planned = rounds(requests, 2, 1, 20, seed=0)
    assert [n for part in planned for n in range(part.first, part.end)] == [*range(requests)]
    assert all(part.first in part.phases for part in planned)


def test_the_report_mentions_a_busy_machine() -> None:
    lines = [*report(Campaign(), Tally(late_s=0.7))]
    assert any("late by up to 0.7 s" in line for line in lines)
    assert not any("late by" in line for line in report(Campaign(), Tally(late_s=0.1)))


def test_percentiles_are_exact() -> None:
    assert percentile([], 0.5) is None
    assert percentile([3, 1, 2], 0.5) == 2
    assert percentile([*range(1, 101)], 0.99) == 99


def test_the_gateway_under_test_gets_no_key() -> None:
    env = {"GROQ_KEY_1": "k", "GATEWAY_KEYS": "k", "ADMIN_TOKEN": "t", "HOST": "::", "PATH": "p"}
    observers = {"LEDGER": "sqlite:///mine", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"}
    assert isolated({**env, **observers, "HEDGE_OR_NOT": "x", "DIRECT_PATH": "false"}) == {
        "PATH": "p",
        "DIRECT_PATH": "false",
        "LEDGER": "off",
    }


@pytest.mark.proves("I-16", "I-30", "I-34")
async def test_a_short_campaign_keeps_every_promise(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in PATIENT.items():
        monkeypatch.setenv(name, value)
    settings = Campaign(requests=150, rounds=2, concurrency=20, seed=SEED, time_limit_s=60)
    tally = await run(settings, quiet)
    text = "\n".join(report(settings, tally))
    assert tally.kept, text
    assert tally.requests == 150
    assert tally.failed_over > 0
    assert sum(tally.befallen.values()) > 10
    assert tally.endings[Ending.WHOLE] > 125
    assert "every promise was kept" in text
    assert "X-Nexus-Attempts" not in text


@pytest.mark.parametrize("direct", ["true", "false"])
@pytest.mark.parametrize("fault", ["again", "silent"])
async def test_a_campaign_of_one_fault_keeps_every_promise(
    fault: str, direct: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan, "MENU", ({fault: None},))
    monkeypatch.setattr(plan, "POISONED", 0)  # such a request is tried with other keys
    for name, value in {**PATIENT, "DIRECT_PATH": direct}.items():
        monkeypatch.setenv(name, value)
    settings = Campaign(requests=200, instances=4, bad=3, rounds=1, concurrency=8)
    tally = await run(settings, quiet)
    assert tally.kept, tally.examples
    assert tally.endings[Ending.WHOLE] > 150
    # No request reaches an instance without an address; each costs an attempt until it rests.
    reached = [n for n in tally.hits if tally.hits[n]]
    assert len(reached) == (1 if fault == "silent" else 4)
    assert tally.failed_over or fault == "again"


@pytest.mark.proves("F75")
async def test_requests_that_every_instance_refuses_take_none_from_the_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(plan, "MENU", ({"silent": None},))
    monkeypatch.setattr(plan, "POISONED", 0.1)
    for name, value in PATIENT.items():
        monkeypatch.setenv(name, value)
    tally = await run(Campaign(requests=200, instances=4, bad=3, rounds=1, concurrency=8), quiet)
    assert tally.kept, tally.examples
    assert tally.endings[Ending.REFUSED] > 10


@pytest.mark.proves("F38")
async def test_no_caller_sees_a_flapping_instance(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "MENU", ({"errors": 0.5},))
    monkeypatch.setattr(plan, "POISONED", 0)
    settings = Campaign(requests=200, instances=3, bad=1, rounds=1, concurrency=8)
    tally = await run(settings, quiet)
    assert tally.kept, tally.examples
    assert tally.befallen["errors"] > 3
    assert min(tally.hits.values()) < sum(tally.hits.values()) / 4


async def run_against_mock(faults: Faults, requests: int = 60) -> Tally:
    """Test a mock with faults in place of a gateway: it returns every fault to the caller."""
    async with Mock(1) as bad:
        bad.set(1, faults)
        url = f"http://127.0.0.1:{bad.instances[0].port}"
        settings = Campaign(requests=requests, instances=2, bad=1, rounds=1, concurrency=20)
        return await run_against(settings, url, None, quiet)


@pytest.mark.parametrize(
    ("faults", "promise"),
    [
        ({"end": 2, "chance": 0.3}, Broken.SILENT),
        ({"no-done": None}, Broken.SILENT),
        ({"errors": 0.1}, Broken.OWN_FAULT),
        ({"429": 1}, Broken.AVOIDABLE),
        ({"401": None, "chance": 0.1}, Broken.KEY_REFUSED),
        ({"html": None}, Broken.WRONG),
        ({"garbage": 2}, Broken.WRONG),
        ({"cut": 2}, Broken.DROPPED),
        ({"reset": None, "chance": 0.1}, Broken.DROPPED),
        ({"error-event": 0, "role-hang": None}, Broken.NO_ERROR_SHAPE),
    ],
)
async def test_a_broken_promise_is_reported(faults: Faults, promise: Broken) -> None:
    tally = await run_against_mock(faults)
    assert promise in tally.broken()
    assert not tally.kept
    assert tally.examples[promise]


async def test_a_good_gateway_passes() -> None:
    tally = await run_against_mock({"delay": 5})
    assert tally.kept, tally.examples
    assert tally.endings[Ending.WHOLE] > 40


async def test_a_hang_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(campaign, "DEFAULT_LIMIT_S", 0.2)
    tally = await run_against_mock({"hang": None, "chance": 0.2})
    assert Broken.HANG in tally.broken()


async def test_the_time_limit_ends_the_campaign_and_is_reported() -> None:
    async with Mock(1) as bad:
        url = f"http://127.0.0.1:{bad.instances[0].port}"
        settings = Campaign(requests=10**6, instances=2, bad=1, rounds=1, time_limit_s=0.2)
        tally = await run_against(settings, url, None, quiet)
    assert tally.broken() == [Broken.NOT_DONE]
    assert 0 < tally.requests < 10**6


async def test_faults_of_a_running_mock_are_changed_and_removed() -> None:
    async with Mock(2) as mock:
        mock.set(2, {"delay": 1})
        url = f"http://127.0.0.1:{mock.instances[0].port}"
        # With this seed the first instance misbehaves, which gets all requests.
        settings = Campaign(requests=60, instances=2, bad=1, rounds=2, concurrency=4, seed=0)
        await run_against(settings, url, url, quiet)
        assert [instance.faults for instance in mock.instances] == [{}, {}]
        assert mock.instances[0].requests == 60
        assert len(mock.instances[0].hit) > 1


async def test_a_mock_that_does_not_answer_is_an_error() -> None:
    settings = Campaign(requests=1, instances=2, bad=1)
    with pytest.raises(aiohttp.ClientError):
        await run_against(settings, "http://127.0.0.1:9", "http://127.0.0.1:9", quiet)


async def test_open_requests_and_a_bad_exit_are_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    async def stuck(*args: object) -> dict[str, Any]:
        return {"inFlightRequests": 1, "providers": [{"inFlight": 1}]}

    async def killed(process: GatewayProcess) -> int | None:
        process._process.kill()
        return await process._process.wait()

    monkeypatch.setattr(campaign, "_health", stuck)
    monkeypatch.setattr(campaign, "QUIET_S", 0.0)
    monkeypatch.setattr(GatewayProcess, "stop", killed)
    tally = await run(Campaign(requests=4, rounds=1), quiet)
    assert tally.broken() == [Broken.LEFT_OPEN, Broken.BAD_EXIT]
    assert "exited with -9" in tally.examples[Broken.BAD_EXIT]


async def test_a_gateway_is_always_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    async with Mock(1) as mock:
        env = {**isolated(os.environ), **mock.environment()}
        with pytest.raises(ZeroDivisionError):
            async with gateway(env) as process:
                raise ZeroDivisionError
    assert process._process.returncode is not None
    with pytest.raises(RuntimeError, match="PORT_IS_NOT|did not start"):
        async with gateway({**env, "MAX_ATTEMPTS": "no"}):
            pass


@pytest.mark.parametrize(
    "options",
    [
        ["--bad", "5"],
        ["--mock", "http://127.0.0.1:9000"],
        ["--url", "http://example.org"],
        ["--url", "http://localhost.example.org:3000"],
        ["--url", "http://127.0.0.1@example.org"],
        ["--url", "http://[::1"],
        ["--url", "https://127.0.0.1"],
        ["--url", "http://127.0.0.1:3000", "--mock", "http://192.0.2.1"],
    ],
)
def test_wrong_options_are_one_line_and_exit_2(
    options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["chaos", *options]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


async def test_the_command_exits_1_if_a_promise_is_broken(tmp_path: Path) -> None:
    async with Mock(1) as bad:
        bad.set(1, {"status": 503})
        url = f"http://127.0.0.1:{bad.instances[0].port}"
        options = ("chaos", "--url", url, "--requests", "20", "--rounds", "1")
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "nexus_gateway", *options),
            cwd=tmp_path,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
        )
        out, _ = await asyncio.wait_for(process.communicate(), 30)
    assert process.returncode == 1
    assert f"BROKEN: {Broken.AVOIDABLE}" in out.decode()
    assert "Scripted 503" in out.decode()


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="looks for processes in /proc")
async def test_a_signal_ends_the_command_and_its_processes(tmp_path: Path) -> None:
    options = ("chaos", "--requests", "100000", "--rounds", "1")
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "nexus_gateway", *options),
        cwd=tmp_path,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        while not (pids := children.read_text().split()):  # noqa: ASYNC110, ASYNC240
            await asyncio.sleep(0.02)
        await asyncio.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(process.wait(), 30) == 130
        for pid in pids:
            with pytest.raises(ProcessLookupError):
                os.kill(int(pid), 0)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


@pytest.mark.parametrize(
    ("answer", "is_refusal"),
    [
        (Answer(503, json.dumps(FULL), headers="Retry-After: 1"), True),
        (Answer(503, json.dumps(FULL)), False),
        (Answer(503, ERROR_TEXT, headers="Retry-After: 1"), False),
        (Answer(503, "<html>", headers="Retry-After: 1"), False),
        (Answer(429, json.dumps(FULL), headers="Retry-After: 1"), False),
    ],
)
def test_only_a_refusal_that_says_when_is_tried_again(answer: Answer, is_refusal: bool) -> None:
    assert answer.is_refusal is is_refusal


# More callers than a gateway with 64 descriptors can serve at once.
CROWD = Campaign(requests=120, instances=3, bad=2, rounds=1, concurrency=60)
SLOW_ROUNDS = [
    Round(0, 119, {0: {1: {"delay": 500}, 2: {"delay": 500}}}),
    Round(119, 120, {119: {}}),
]


@pytest.mark.proves("F65")
async def test_with_few_descriptors_every_caller_is_served_at_last(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Campaign, "plan", lambda _: SLOW_ROUNDS)
    for name, value in PATIENT.items():
        monkeypatch.setenv(name, value)
    tally = await run(CROWD, quiet)
    assert tally.kept, tally.examples
    assert tally.befallen["64 descriptors"] > 0


async def test_more_requests_than_descriptors_are_reported(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    code = (
        "from nexus_gateway.server import process\nprocess._limit_requests = lambda gateway: None\n"
    )
    (tmp_path / "sitecustomize.py").write_text(code)  # of the gateway's processes
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(Campaign, "plan", lambda _: SLOW_ROUNDS)
    tally = await run(CROWD, quiet)
    assert Broken.EXHAUSTED in tally.broken()


async def test_a_hung_worker_that_is_not_noticed_is_reported(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    unwatched = "supervisor.HANGS_AFTER = supervisor.KILLED_AFTER = 10**9"
    code = f"from nexus_gateway.server import supervisor\n{unwatched}\n"
    (tmp_path / "sitecustomize.py").write_text(code)  # of the gateway's processes
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(campaign, "NOTICE_S", 1.0)
    monkeypatch.setattr(campaign, "QUIET_S", 1.0)
    monkeypatch.setattr(campaign, "SLACK_S", 1.0)  # the request may reach the worker
    monkeypatch.setenv("RESPONSE_TIMEOUT_MS", "2000")
    two_rounds = [Round(0, 1, {0: {}}), Round(1, 2, {1: {}})]
    monkeypatch.setattr(Campaign, "plan", lambda _: two_rounds)
    tally = await run(Campaign(requests=2, concurrency=1), quiet)
    assert Broken.UNNOTICED in tally.broken()


# Of three rounds the second has the crowd of slow and huge bodies.
CROWDED = [Round(0, 1, {0: {}}), Round(1, 41, {1: {}}), Round(41, 42, {41: {}})]


@pytest.mark.proves("F31", "F73")
async def test_slow_and_huge_bodies_are_refused_and_cost_no_other_its_answer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Campaign, "plan", lambda _: CROWDED)
    for name, value in PATIENT.items():
        monkeypatch.setenv(name, value)
    tally = await run(Campaign(requests=42, rounds=3), quiet)
    assert tally.kept, tally.examples
    sent = {name: n for name, n in tally.befallen.items() if "body" in name}
    assert sent == {sending.name: 4 for sending in bodies.KINDS} | {bodies.HUGE.name: 8}
    assert tally.endings[Ending.TOO_MUCH] >= 4 * bodies.CALLERS


LEAKING = """
from nexus_gateway.web.bodies import BodyBudget
has_room = BodyBudget.has_room
def take(budget, size):
    if not has_room(budget, size):
        raise BodiesOverloaded
    budget.taken += size * 6
BodyBudget.take = take
"""
UNLIMITED = """
from nexus_gateway.web import bodies, request
request.MB = 2**30
bodies.BodyBudget.has_room = lambda budget, size: True
"""


@pytest.mark.parametrize(
    ("code", "promise"), [(LEAKING, Broken.NOT_RETURNED), (UNLIMITED, Broken.UNLIMITED)]
)
async def test_bodies_without_a_limit_or_an_end_are_reported(
    code: str, promise: Broken, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    code = f"from nexus_gateway.errors import BodiesOverloaded\n{code}"
    (tmp_path / "sitecustomize.py").write_text(code)  # of the gateway's processes
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(Campaign, "plan", lambda _: CROWDED)
    for name, value in PATIENT.items():
        monkeypatch.setenv(name, value)
    tally = await run(Campaign(requests=42, rounds=3), quiet)
    assert promise in tally.broken()
