"""Runs a campaign: against gateways of its own, each a process, or against one that runs already.

A number of concurrent callers send the planned requests, and every answer is judged.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import runpy
import signal
import socket
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp

from nexus_gateway.server.sockets import can_share_a_port
from nexus_gateway.settings import VARIABLES, Settings
from nexus_gateway.testing.chaos import bodies
from nexus_gateway.testing.chaos.bodies import Sending
from nexus_gateway.testing.chaos.judge import Answer, Broken, Ending, Tally, judge, judge_body
from nexus_gateway.testing.chaos.plan import ChatRequest, Round, planned_request, rounds
from nexus_gateway.testing.faults import Faults
from nexus_gateway.testing.mock import KEY, SILENT, Mock
from nexus_gateway.web import request as web_request

PATH = "/v1/chat/completions"
CONNECT_S = 10.0


def client(concurrency: int, *, is_new_each: bool = False) -> aiohttp.ClientSession:
    """Return an HTTP client for concurrent callers, which may use each connection once."""
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=concurrency, force_close=is_new_each),
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S),
        trust_env=False,
    )


async def ask(
    session: aiohttp.ClientSession,
    url: str,
    request: ChatRequest,
    limit_s: float,
    sending: Sending | None = None,
) -> Answer | None:
    """Send a request and read its answer; None if the caller disconnected early."""
    answer, content, start_s = Answer(), bytearray(), time.monotonic()
    headers = {"Content-Type": "application/json", **request.headers}
    body: bytes | AsyncIterator[bytes]
    if sending is None:
        body = json.dumps(request.body()).encode()
    else:
        data = sending.body(request)
        headers |= {"Content-Length": str(len(data))} if sending.declared else {}
        body = sending.stream(data)
    leaves = request.leaves_after_s
    try:
        async with (
            asyncio.timeout(limit_s if leaves is None else leaves),
            session.post(url + PATH, data=body, headers=headers) as response,
        ):
            answer.status, answer.headers = response.status, str(response.headers)
            with contextlib.suppress(ValueError):
                answer.attempts = int(response.headers.get("X-Nexus-Attempts", ""))
            async for piece in response.content.iter_any():
                content += piece
                if not answer.first_s and (not request.stream or _has_content(piece)):
                    answer.first_s = time.monotonic() - start_s
    except TimeoutError:
        if leaves is not None:
            return None
        answer.late = True
    except (aiohttp.ClientError, OSError, ValueError) as error:
        answer.connection_error = type(error).__name__
    answer.body = content.decode(errors="replace")
    return answer


def _has_content(piece: bytes) -> bool:
    return piece.count(b'"content":"') > piece.count(b'"content":""')


START_S = 30.0
STOP_S = 20.0
KILL_S = 5.0
LOG_LINES = 2000
LONGEST_LINE = 2**14  # little of the log waits here while nobody reads it
POLL_S = 0.05
# What any process needs; nothing that leads to a key.
_KEPT = ("PATH", "PYTHONPATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "VIRTUAL_ENV", "SYSTEMROOT")
_OWN = frozenset({"HOST", "PORT", "GATEWAY_KEYS", "ADMIN_TOKEN", "VIEWER_TOKEN"})
_SERVING = re.compile(r"pid (\d+)\) is serving")
_URL = re.compile(r"listens on (http://[\w.:\[\]]+)")


def isolated(environ: Mapping[str, str]) -> dict[str, str]:
    """Return what a gateway under test needs of an environment: settings, but no secrets.

    Its requests are not the user's: they do not appear in the user's ledger or traces.
    """
    settings = {v.name for v in VARIABLES if not v.name.startswith("OTEL_")} - _OWN
    kept = {name: v for name, v in environ.items() if name in _KEPT or name in settings}
    return {**kept, "LEDGER": "off"}


class GatewayProcess:
    """A gateway as a process.

    Attributes:
        url: where it listens.
        log: its last lines.
    """

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.url = ""
        self.log: deque[str] = deque(maxlen=LOG_LINES)
        self._process = process
        self._ready = asyncio.Event()
        self._read_on = asyncio.Event()
        self._read_on.set()
        self._reading = asyncio.create_task(self._read())

    async def _read(self) -> None:
        assert self._process.stderr is not None
        with contextlib.suppress(ValueError):  # a line longer than the reader's limit
            async for line in self._process.stderr:
                self.log.append(line.decode(errors="replace"))
                if not self._ready.is_set() and (match := _URL.search(self.log[-1])):
                    self.url = match[1]
                    self._ready.set()
                await self._read_on.wait()
        self._ready.set()

    def log_tail(self) -> str:
        return "".join(self.log)[-2000:]

    async def started(self) -> None:
        """Wait until it listens; RuntimeError if it does not."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._ready.wait(), START_S)
        if not self.url:
            raise RuntimeError(f"the gateway did not start: {self.log_tail()}")

    @asynccontextmanager
    async def troubled(self, session: aiohttp.ClientSession) -> AsyncIterator[int]:
        """Meanwhile read no line of the log, and keep one of its two workers, the pid, stopped."""
        async with asyncio.timeout(START_S):
            while (await _health(session, self.url))["workers"] < WORKERS:  # noqa: ASYNC110
                await asyncio.sleep(POLL_S)
        self._read_on.clear()
        pid = int(_SERVING.findall("".join(self.log))[-1])
        os.kill(pid, signal.SIGSTOP)
        try:
            yield pid
        finally:
            self._read_on.set()
            with contextlib.suppress(ProcessLookupError):  # it was replaced
                os.kill(pid, signal.SIGCONT)

    async def stop(self, wait_s: float = STOP_S) -> int | None:
        """Send SIGTERM; return the exit code, None if it did not exit in time."""
        with contextlib.suppress(ProcessLookupError):
            self._process.terminate()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._process.wait(), wait_s)
        return self._process.returncode

    async def end(self) -> None:
        """End it by all means."""
        if self._process.returncode is None and await self.stop(KILL_S) is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
            await self._process.wait()
        await self._reading


@asynccontextmanager
async def gateway(
    env: Mapping[str, str], *, descriptors: int | None = None
) -> AsyncIterator[GatewayProcess]:
    """Run a gateway on a free port of loopback; RuntimeError if it does not start.

    The environment is all that it gets: it runs in an empty directory, without a .env file. It may
    open no more than so many `descriptors`.
    """
    limited = ("/bin/sh", "-c", f'ulimit -n {descriptors}; exec "$@"', "sh") if descriptors else ()
    with tempfile.TemporaryDirectory() as folder:
        process = await asyncio.create_subprocess_exec(
            *(*limited, sys.executable, "-m", "nexus_gateway.testing.chaos.campaign"),
            *("serve", "--host", "127.0.0.1", "--port", "0"),
            env={**env, "PYTHONUNBUFFERED": "1"},
            cwd=folder,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            limit=LONGEST_LINE,
            # Ctrl-C must not reach it directly; the campaign ends it.
            start_new_session=os.name == "posix",
        )
        running = GatewayProcess(process)
        try:
            await running.started()
            yield running
        finally:
            await running.end()


Switch = Callable[[Mapping[int, Faults]], Awaitable[None]]
Progress = Callable[[str], None]

QUIET_S = 5.0
NOTICE_S = 15.0
# Added to the gateway's own limits, as the machine may be busy.
SLACK_S = 10.0
LIMITS = {
    "FIRST_TOKEN_TIMEOUT_MS": "1500",
    "IDLE_TIMEOUT_MS": "1000",
    "RESPONSE_TIMEOUT_MS": "10000",
    "SHUTDOWN_TIMEOUT_MS": "3000",
    "LOG_LEVEL": "warning",
}
# Of the last round, in which one worker hangs and nothing reads the log, which is long.
WORKERS = 2
TROUBLED = {"WEB_CONCURRENCY": str(WORKERS), "LOG_LEVEL": "debug"}
# Of the first round, in which callers that are refused for it try again.
DESCRIPTORS = 64
REFUSED_S = 0.2
# For a gateway with unknown settings.
DEFAULT_LIMIT_S = 180.0
EXHAUSTED = "no file descriptors are left"
BAD_SIGNS = ("Traceback (most recent call last)", "never retrieved", "was never awaited")


@dataclass(frozen=True, slots=True)
class Campaign:
    """The size of a campaign: how many requests, instances, bad ones, callers and gateways."""

    requests: int = 5000
    instances: int = 5
    bad: int = 2
    concurrency: int = 50
    rounds: int = 20
    seed: int = 0
    time_limit_s: float = 300.0  # nothing is sent after it

    def plan(self) -> list[Round]:
        return rounds(self.requests, self.instances, self.bad, self.rounds, self.seed)


async def run(campaign: Campaign, progress: Progress) -> Tally:
    """Run a campaign against gateways of its own; RuntimeError if one does not start."""
    tally = Tally()
    plan = campaign.plan()
    for number, part in enumerate(plan, 1):
        if tally.elapsed_s() > campaign.time_limit_s:
            break
        troubled = number == len(plan) > 1 and can_share_a_port()
        faults = ", then ".join(_described(part))
        faults += "; a worker hangs, and nothing reads the log" if troubled else ""
        descriptors = DESCRIPTORS if number == 1 < len(plan) and os.name == "posix" else None
        crowded = number == 2 < len(plan)
        faults += "; slow and huge bodies" if crowded else ""
        faults += f"; {descriptors} descriptors" if descriptors else ""
        progress(f"round {number} of {len(plan)}, {part.end - part.first} requests: {faults}")
        async with Mock(campaign.instances, seed=campaign.seed * 1_000_003 + number) as mock:
            watching = asyncio.create_task(_watch(tally))
            try:
                await _round(
                    *(campaign, part, mock, tally),
                    troubled=troubled,
                    descriptors=descriptors,
                    crowded=crowded,
                )
            finally:
                watching.cancel()
    return _finished(campaign, tally)


async def _watch(tally: Tally) -> None:
    """Measure how late this process is: the mock is then late as well."""
    while True:
        due_s = time.monotonic() + POLL_S
        await asyncio.sleep(POLL_S)
        tally.late_s = max(tally.late_s, time.monotonic() - due_s)


def _described(part: Round) -> Iterator[str]:
    """Yield the faults of each phase in the syntax of `mock --fault`."""
    for phase in part.phases.values():
        yield " ".join(
            f"{number}:{name}" if value is None else f"{number}:{name}={value}"
            for number, faults in phase.items()
            for name, value in faults.items()
        )


async def _round(
    campaign: Campaign,
    part: Round,
    mock: Mock,
    tally: Tally,
    *,
    troubled: bool,
    descriptors: int | None,
    crowded: bool,
) -> None:
    async def switch(faults: Mapping[int, Faults]) -> None:
        for number, one in faults.items():
            mock.set(number, one)

    await switch(part.phases[part.first])
    attempts = {"MAX_ATTEMPTS": str(max(6, campaign.instances + 1))}
    env = {**LIMITS, **attempts, **isolated(os.environ), **mock.environment()}
    if troubled:
        env |= TROUBLED
    if crowded:
        env |= bodies.LIMITS
    settings = Settings.from_env(env)
    limit_s = (settings.response_timeout_ms + settings.idle_timeout_ms) / 1000 + SLACK_S
    async with (
        gateway(env, descriptors=descriptors) as process,
        client(campaign.concurrency, is_new_each=bool(descriptors)) as session,
    ):
        callers = _Callers(campaign, session, process.url, limit_s, tally, descriptors)
        async with process.troubled(session) if troubled else contextlib.nullcontext() as stopped:
            async with asyncio.TaskGroup() as group:
                group.create_task(callers.send(part, switch))
                if crowded:
                    group.create_task(callers.send_bodies())
            if stopped is not None:
                await _check_noticed(session, process, stopped, tally)
            await _check_quiet(session, process, mock, tally)
            if crowded:
                await callers.check_room()
        code = await process.stop()
        if code != 0:
            what = "did not exit" if code is None else f"exited with {code}"
            tally.add_broken(Broken.BAD_EXIT, f"it {what}; its last lines: {process.log_tail()}")
    _check_log(process, tally)
    for instance in mock.instances:
        tally.hits[instance.number] += instance.requests
        tally.befallen.update(instance.hit)


async def run_against(
    campaign: Campaign, url: str, mock_url: str | None, progress: Progress
) -> Tally:
    """Run a campaign against a gateway that runs already in front of a mock.

    With the URL of the mock, which must have as many instances as the campaign, the campaign
    changes its faults, and removes them at the end.

    Raises:
        aiohttp.ClientError, OSError: the mock does not answer.
    """
    tally = Tally()
    async with client(campaign.concurrency) as session:

        async def switch(faults: Mapping[int, Faults]) -> None:
            if mock_url is not None:
                for number, one in faults.items():
                    async with session.put(f"{mock_url}/faults/{number}", json=one) as response:
                        response.raise_for_status()

        no_faults: dict[int, Faults] = {n: {} for n in range(1, campaign.instances + 1)}
        callers = _Callers(campaign, session, url, DEFAULT_LIMIT_S, tally)
        plan = campaign.plan()
        await switch(no_faults)
        try:
            for number, part in enumerate(plan, 1):
                progress(f"part {number} of {len(plan)}: {part.end - part.first} requests")
                await callers.send(part, switch)
        finally:
            await switch(no_faults)
        with contextlib.suppress(aiohttp.ClientError, ValueError, TimeoutError):
            tally.health = await _health(session, url)
    return _finished(campaign, tally)


@dataclass(frozen=True, slots=True)
class _Callers:
    """Concurrent callers, which send the requests of a round."""

    campaign: Campaign
    session: aiohttp.ClientSession
    url: str
    limit_s: float
    tally: Tally
    descriptors: int | None = None

    async def send(self, part: Round, switch: Switch) -> None:
        numbers = iter(range(part.first, part.end))
        async with asyncio.TaskGroup() as group:
            for _ in range(min(self.campaign.concurrency, part.end - part.first)):
                group.create_task(self._caller(numbers, part, switch))

    async def _caller(self, numbers: Iterator[int], part: Round, switch: Switch) -> None:
        for number in numbers:
            if self.tally.elapsed_s() > self.campaign.time_limit_s:
                return
            if faults := part.phases.get(number):
                await switch(faults)
            await self._send_one(planned_request(number, self.campaign.seed))

    async def _send_one(self, request: ChatRequest) -> None:
        self.tally.requests += 1
        end_s = time.monotonic() + self.limit_s
        answer = await ask(self.session, self.url, request, self.limit_s)
        while self.descriptors and answer and answer.is_refusal and time.monotonic() < end_s:
            self.tally.befallen[f"{self.descriptors} descriptors"] += 1
            await asyncio.sleep(REFUSED_S)
            answer = await ask(self.session, self.url, request, self.limit_s)
        if answer is None:
            self.tally.endings[Ending.LEFT] += 1
        else:
            self.tally.add(request, answer, judge(request, answer, KEY))

    async def send_bodies(self) -> None:
        """Send slow and huge bodies, all at the same time."""
        async with client(0, is_new_each=True) as session, asyncio.TaskGroup() as group:
            for request, sending in bodies.requests():
                group.create_task(self._send_body(session, request, sending))

    async def _send_body(
        self, session: aiohttp.ClientSession, request: ChatRequest, sending: Sending
    ) -> None:
        answer = await ask(session, self.url, request, self.limit_s, sending)
        assert answer is not None  # these callers stay
        self.tally.befallen[sending.name] += 1
        self.tally.add(request, answer, judge_body(request, answer, sending.statuses, KEY))

    async def check_room(self) -> None:
        """Check that a huge body has room again."""
        request = bodies.chat_request(0)
        async with client(1, is_new_each=True) as session:
            answer = await ask(session, self.url, request, self.limit_s, bodies.HUGE)
        if answer is not None and answer.is_refusal:
            self.tally.add_broken(Broken.NOT_RETURNED, answer.body)


async def _health(session: aiohttp.ClientSession, url: str) -> dict[str, Any]:
    alone = {"Connection": "close"}  # no request follows to a worker that hangs by then
    async with asyncio.timeout(QUIET_S), session.get(f"{url}/health", headers=alone) as response:
        health: dict[str, Any] = await response.json()
        return health


async def _check_noticed(
    session: aiohttp.ClientSession, process: GatewayProcess, stopped: int, tally: Tally
) -> None:
    """Check that the gateway no longer counts a stopped worker, or has replaced it."""
    end_s = time.monotonic() + NOTICE_S
    while time.monotonic() < end_s:
        with contextlib.suppress(aiohttp.ClientError, ValueError, TimeoutError):
            if (await _health(session, process.url))["workers"] < WORKERS:
                return
        try:
            os.kill(stopped, 0)
        except ProcessLookupError:
            return
        await asyncio.sleep(POLL_S)
    tally.add_broken(Broken.UNNOTICED, f"/health still counts it after {NOTICE_S:.0f} s")


async def _check_quiet(
    session: aiohttp.ClientSession, process: GatewayProcess, mock: Mock, tally: Tally
) -> None:
    """Check that nothing is in flight any more."""
    end_s = time.monotonic() + QUIET_S
    while True:
        try:
            health = tally.health = await _health(session, process.url)
        except (aiohttp.ClientError, ValueError, TimeoutError) as error:
            why = f"/health does not answer: {type(error).__name__}"
            return tally.add_broken(Broken.LEFT_OPEN, why)
        in_flight = health["inFlightRequests"]
        by_instance = [provider["inFlight"] for provider in health["providers"]]
        upstream = [instance.open for instance in mock.instances]
        if not any((in_flight, *by_instance, *upstream)):
            return None
        if time.monotonic() > end_s:
            why = f"in flight {in_flight}, by instance {by_instance}, at the upstreams {upstream}"
            return tally.add_broken(Broken.LEFT_OPEN, why)
        await asyncio.sleep(POLL_S)


def _check_log(process: GatewayProcess, tally: Tally) -> None:
    log = "".join(process.log)
    if KEY in log:
        tally.add_broken(Broken.KEY_EXPOSED, "in the log")
    if EXHAUSTED in log:
        tally.add_broken(Broken.EXHAUSTED, process.log_tail())
    if any(sign in log for sign in BAD_SIGNS):
        tally.add_broken(Broken.TRACEBACK, process.log_tail())


def _finished(campaign: Campaign, tally: Tally) -> Tally:
    tally.took_s = tally.elapsed_s()
    if tally.requests < campaign.requests:
        why = f"{tally.requests} of {campaign.requests} in {campaign.time_limit_s:.0f} s"
        tally.add_broken(Broken.NOT_DONE, why)
    return tally


def _run_gateway() -> None:
    """Run `nexus-gateway`, in a process of its own, with names that nobody answers for: SILENT.

    Slow bodies have less time.
    """
    look_up = socket.getaddrinfo

    def getaddrinfo(host: Any, *rest: Any, **more: Any) -> Any:
        if str(host).endswith(SILENT):
            threading.Event().wait()
        return look_up(host, *rest, **more)

    socket.getaddrinfo = getaddrinfo
    web_request.GRACE_S = bodies.GRACE_S
    runpy.run_module("nexus_gateway", run_name="__main__")


if __name__ == "__main__":
    _run_gateway()
