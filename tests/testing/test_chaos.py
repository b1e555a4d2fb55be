"""The campaign: what it plans, how it judges, that it survives, and that it can fail."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from nexus_gateway.cli.chaos import report
from nexus_gateway.cli.main import main
from nexus_gateway.errors import error_object
from nexus_gateway.testing.chaos import campaign, plan
from nexus_gateway.testing.chaos import campaign as gateway_process
from nexus_gateway.testing.chaos.campaign import (
    Campaign,
    GatewayProcess,
    isolated,
    run,
    run_against,
)
from nexus_gateway.testing.chaos.judge import Answered, Broken, Ending, Tally, judge, percentile
from nexus_gateway.testing.chaos.plan import MENU, Asked, asked, rounds
from nexus_gateway.testing.faults import CHANCE, FAULTS, Faults, read_faults
from nexus_gateway.testing.mock import KEY, Mock

# By this seed nothing hangs, so that the limits need not be short, whatever else the machine does.
PATIENT = {
    "FIRST_TOKEN_TIMEOUT_MS": "5000",
    "IDLE_TIMEOUT_MS": "5000",
    "RESPONSE_TIMEOUT_MS": "20000",
}
SEED = 474


def quiet(line: str) -> None:
    pass


def ask(text: str = "one two", *, stream: bool = True) -> Asked:
    return Asked(1, text, stream, {}, None, None)


def chunk(content: str | None = None, finish: str | None = None) -> str:
    delta = {} if content is None else {"content": content}
    return json.dumps({"choices": [{"index": 0, "delta": delta, "finish_reason": finish}]})


def sse(*data: str) -> str:
    return "".join(f"data: {one}\n\n" for one in data)


def whole(text: str) -> str:
    choice = {"message": {"content": text}, "finish_reason": "stop"}
    return json.dumps({"choices": [choice]})


ERROR = error_object("It broke.", kind="server_error", code="broken")
SAYS = json.dumps(ERROR)
END = (chunk(finish="stop"), "[DONE]")


@pytest.mark.parametrize(
    ("body", "ending"),
    [
        (sse(chunk("one"), chunk(" two"), *END), Ending.WHOLE),
        (": keep-alive\n\n" + sse(chunk("one two"), *END), Ending.WHOLE),
        (sse(chunk("one"), SAYS), Ending.SAID_SO),
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
        (sse(chunk("another"), SAYS), Broken.WRONG),
        (sse(chunk("one"), SAYS, "[DONE]"), Broken.WRONG),
        (sse("{not json"), Broken.WRONG),
        ("event: x\n\n", Broken.WRONG),
        (sse(chunk("")) + sse(SAYS), Broken.AVOIDABLE),
        (sse(chunk("one"), '{"error":"no"}'), Broken.NO_ERROR_SHAPE),
    ],
)
def test_a_stream_is_judged(body: str, ending: Ending | Broken) -> None:
    assert judge(ask(), Answered(200, body)).ending is ending


@pytest.mark.parametrize(
    ("answered", "ending"),
    [
        (Answered(200, whole("one two")), Ending.WHOLE),
        (Answered(200, whole("one")), Broken.WRONG),
        (Answered(200, whole("one twoone two")), Broken.WRONG),
        (Answered(200, whole("one two")[:-5]), Broken.WRONG),
        (Answered(200, "<html>"), Broken.WRONG),
        (Answered(503, SAYS), Broken.AVOIDABLE),
        (Answered(429, SAYS), Broken.AVOIDABLE),
        (Answered(401, SAYS), Broken.KEY_REFUSED),
        (Answered(403, SAYS), Broken.KEY_REFUSED),
        (Answered(500, SAYS), Broken.OWN_FAULT),
        (Answered(503, '{"error":"no"}'), Broken.NO_ERROR_SHAPE),
        (Answered(502, "<html>"), Broken.NO_ERROR_SHAPE),
        (Answered(503, '{"error":{"message":"","type":"x","param":null,"code":null}}'), Broken),
        (Answered(200, "x", late=True), Broken.HANG),
        (Answered(200, "x", trouble="ClientPayloadError"), Broken.DROPPED),
        (Answered(503, json.dumps({**ERROR, "key": f"{KEY}1"})), Broken.KEY_TOLD),
        (Answered(200, whole("one two"), headers=f"X: {KEY}1"), Broken.KEY_TOLD),
    ],
)
def test_an_answer_is_judged(answered: Answered, ending: Any) -> None:
    found = judge(ask(stream=False), answered, KEY).ending
    assert found is (Broken.NO_ERROR_SHAPE if ending is Broken else ending)


def test_a_plan_is_by_its_seed() -> None:
    assert rounds(500, 5, 2, 4, seed=1) == rounds(500, 5, 2, 4, seed=1)
    assert rounds(500, 5, 2, 4, seed=1) != rounds(500, 5, 2, 4, seed=2)
    assert [asked(n, 1) for n in range(9)] == [asked(n, 1) for n in range(9)]
    assert asked(1, 1).text != asked(1, 2).text
    assert len({asked(n, 1).text for n in range(500)}) == 500


def test_a_plan_has_every_request_once_and_every_fault_of_the_menu() -> None:
    planned = rounds(5000, 5, 2, 20, seed=3)
    assert [n for part in planned for n in range(part.first, part.end)] == [*range(5000)]
    phases = [phase for part in planned for phase in part.phases]
    assert {part.first for part in planned} <= {phase.first for phase in phases}
    assert len({frozenset(phase.faults) for phase in phases}) == 1
    assert all(len(phase.faults) == 2 for phase in phases)
    met = [faults for phase in phases for faults in phase.faults.values()]
    bare = [{k: v for k, v in faults.items() if k != CHANCE} for faults in met]
    assert all(item in bare for item in MENU)
    assert all(read_faults(faults) for faults in met)


def test_the_menu_has_every_fault() -> None:
    assert {name for item in MENU for name in item} | {CHANCE} == {f.name for f in FAULTS}


@pytest.mark.parametrize("requests", [1, 2, 3, 7])
def test_a_small_plan_is_whole(requests: int) -> None:
    planned = rounds(requests, 2, 1, 20, seed=0)
    assert [n for part in planned for n in range(part.first, part.end)] == [*range(requests)]
    assert all(part.phases[0].first == part.first for part in planned)


def test_a_busy_machine_is_told() -> None:
    told = [*report(Campaign(), Tally(late_s=0.7))]
    assert any("late by up to 0.7 s" in line for line in told)
    assert not any("late by" in line for line in report(Campaign(), Tally(late_s=0.1)))


def test_percentiles() -> None:
    assert percentile([], 0.5) is None
    assert percentile([3, 1, 2], 0.5) == 2
    assert percentile([*range(1, 101)], 0.99) == 99


def test_no_key_of_ours_reaches_the_gateway_under_test() -> None:
    env = {"GROQ_KEY_1": "k", "GATEWAY_KEYS": "k", "ADMIN_TOKEN": "t", "HOST": "::", "PATH": "p"}
    seen = {"LEDGER": "sqlite:///mine", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"}
    assert isolated({**env, **seen, "HEDGE_OR_NOT": "x", "DIRECT_PATH": "false"}) == {
        "PATH": "p",
        "DIRECT_PATH": "false",
        "LEDGER": "off",
    }


@pytest.mark.proves("I-16", "I-30", "I-34")
async def test_a_short_campaign_is_survived(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in PATIENT.items():
        monkeypatch.setenv(name, value)
    wanted = Campaign(requests=300, rounds=2, concurrency=20, seed=SEED, time_limit_s=60)
    tally = await run(wanted, quiet)
    told = "\n".join(report(wanted, tally))
    assert tally.kept, told
    assert tally.requests == 300
    assert tally.failed_over > 0
    assert sum(tally.befallen.values()) > 10
    assert tally.endings[Ending.WHOLE] > 250
    assert "every promise was kept" in told
    assert "X-Nexus-Attempts" not in told


@pytest.mark.proves("F38")
async def test_one_that_flaps_costs_no_caller_anything(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "MENU", ({"errors": 0.5},))
    wanted = Campaign(requests=200, instances=3, bad=1, rounds=1, concurrency=8)
    tally = await run(wanted, quiet)
    assert tally.kept, tally.examples
    assert tally.befallen["errors"] > 3
    assert min(tally.hits.values()) < sum(tally.hits.values()) / 4


async def attacked(faults: Faults, requests: int = 60) -> Tally:
    """Let a mock with faults be the gateway: one that lets everything through."""
    async with Mock(1) as bad:
        bad.set(1, faults)
        url = f"http://127.0.0.1:{bad.instances[0].port}"
        wanted = Campaign(requests=requests, instances=2, bad=1, rounds=1, concurrency=20)
        return await run_against(wanted, url, None, quiet)


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
async def test_a_broken_promise_is_found(faults: Faults, promise: Broken) -> None:
    tally = await attacked(faults)
    assert promise in tally.broken()
    assert not tally.kept
    assert tally.examples[promise]


async def test_a_good_gateway_is_found_good() -> None:
    tally = await attacked({"delay": 5})
    assert tally.kept, tally.examples
    assert tally.endings[Ending.WHOLE] > 40


async def test_a_hang_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(campaign, "DEFAULT_LIMIT_S", 0.2)
    tally = await attacked({"hang": None, "chance": 0.2})
    assert Broken.HANG in tally.broken()


async def test_the_time_limit_ends_it_and_is_told() -> None:
    async with Mock(1) as bad:
        url = f"http://127.0.0.1:{bad.instances[0].port}"
        wanted = Campaign(requests=10**6, instances=2, bad=1, rounds=1, time_limit_s=0.2)
        tally = await run_against(wanted, url, None, quiet)
    assert tally.broken() == [Broken.NOT_DONE]
    assert 0 < tally.requests < 10**6


async def test_faults_of_a_mock_that_runs_are_switched_and_taken_back() -> None:
    async with Mock(2) as mock:
        mock.set(2, {"delay": 1})
        url = f"http://127.0.0.1:{mock.instances[0].port}"
        # By this seed it is the first that misbehaves, which all is sent to.
        wanted = Campaign(requests=60, instances=2, bad=1, rounds=2, concurrency=4, seed=0)
        await run_against(wanted, url, url, quiet)
        assert [instance.faults for instance in mock.instances] == [{}, {}]
        assert mock.instances[0].requests == 60
        assert len(mock.instances[0].hit) > 1


async def test_a_mock_that_does_not_answer_is_told() -> None:
    wanted = Campaign(requests=1, instances=2, bad=1)
    with pytest.raises(aiohttp.ClientError):
        await run_against(wanted, "http://127.0.0.1:9", "http://127.0.0.1:9", quiet)


async def test_what_is_left_open_and_a_bad_exit_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
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


async def test_a_gateway_is_ended_whatever_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    async with Mock(1) as mock:
        env = {**isolated(os.environ), **mock.environment()}
        with pytest.raises(ZeroDivisionError):
            async with gateway_process.gateway(env) as process:
                raise ZeroDivisionError
    assert process._process.returncode is not None
    with pytest.raises(RuntimeError, match="PORT_IS_NOT|did not start"):
        async with gateway_process.gateway({**env, "MAX_ATTEMPTS": "no"}):
            pass


@pytest.mark.parametrize(
    "words",
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
def test_wrong_words_are_one_line_and_exit_2(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["chaos", *words]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


async def test_the_command_exits_1_where_a_promise_is_broken(tmp_path: Path) -> None:
    async with Mock(1) as bad:
        bad.set(1, {"status": 503})
        url = f"http://127.0.0.1:{bad.instances[0].port}"
        words = ("chaos", "--url", url, "--requests", "20", "--rounds", "1")
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "nexus_gateway", *words),
            cwd=tmp_path,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
        )
        out, _ = await asyncio.wait_for(process.communicate(), 30)
    assert process.returncode == 1
    assert f"BROKEN: {Broken.AVOIDABLE}" in out.decode()
    assert "Scripted 503" in out.decode()


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="looks for processes in /proc")
async def test_a_signal_ends_it_with_what_it_started(tmp_path: Path) -> None:
    words = ("chaos", "--requests", "100000", "--rounds", "1")
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "nexus_gateway", *words),
        cwd=tmp_path,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        while not (found := children.read_text().split()):  # noqa: ASYNC110, ASYNC240
            await asyncio.sleep(0.02)
        await asyncio.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(process.wait(), 30) == 130
        for pid in found:
            with pytest.raises(ProcessLookupError):
                os.kill(int(pid), 0)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
