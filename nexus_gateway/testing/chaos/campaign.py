"""Run a campaign: against gateways of our own, or against one that runs already.

The gateway as a process of its own: started, asked how it is, ended.

The callers of a campaign: each sends a request and reads the answer to its end.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import sys
import tempfile
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

import aiohttp

from nexus_gateway.settings import VARIABLES, Settings
from nexus_gateway.testing.chaos.judge import Answered, Broken, Ending, Tally, judge
from nexus_gateway.testing.chaos.plan import Asked, Phase, Round, asked, rounds
from nexus_gateway.testing.faults import Faults
from nexus_gateway.testing.mock import KEY, Mock

PATH = "/v1/chat/completions"
CONNECT_S = 10.0
_CONTENT = b'"content":"'
_NOTHING = b'"content":""'


def client(concurrency: int) -> aiohttp.ClientSession:
    """Return an HTTP client for so many callers at once."""
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=concurrency),
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S),
        trust_env=False,
    )


async def ask(
    session: aiohttp.ClientSession, url: str, asked: Asked, limit_s: float
) -> Answered | None:
    """Send a request; None where its caller left before the answer was whole.

    Args:
        session: the HTTP client.
        url: of the gateway.
        asked: the request.
        limit_s: after which it hangs.
    """
    leaves = asked.leaves_after_s
    reading = _Reading()
    try:
        async with asyncio.timeout(limit_s if leaves is None else leaves):
            await reading.read(session, url, asked)
    except TimeoutError:
        return None if leaves is not None else replace(reading.answered(), late=True)
    except (aiohttp.ClientError, OSError, ValueError) as error:
        return replace(reading.answered(), trouble=type(error).__name__)
    return reading.answered()


class _Reading:
    """An answer as it comes."""

    def __init__(self) -> None:
        self._status = 0
        self._body = bytearray()
        self._headers = ""
        self._attempts = 0
        self._begun_s = time.monotonic()
        self._first_s = 0.0

    async def read(self, session: aiohttp.ClientSession, url: str, asked: Asked) -> None:
        data = json.dumps(asked.body()).encode()
        head = {"Content-Type": "application/json", **asked.headers}
        async with session.post(url + PATH, data=data, headers=head) as response:
            self._status, self._headers = response.status, str(response.headers)
            with contextlib.suppress(ValueError):
                self._attempts = int(response.headers.get("X-Nexus-Attempts", ""))
            async for piece in response.content.iter_any():
                self._body += piece
                if not self._first_s and (not asked.stream or _says_something(piece)):
                    self._first_s = time.monotonic() - self._begun_s

    def answered(self) -> Answered:
        text = self._body.decode(errors="replace")
        return Answered(self._status, text, self._headers, self._attempts, self._first_s)


def _says_something(piece: bytes) -> bool:
    return piece.count(_CONTENT) > piece.count(_NOTHING)


START_S = 30.0
STOP_S = 20.0
KILL_S = 5.0
LINES = 2000
# What a process needs to run at all; nothing by which it could find a key.
_KEPT = ("PATH", "PYTHONPATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "VIRTUAL_ENV", "SYSTEMROOT")
_OURS = frozenset({"HOST", "PORT", "GATEWAY_KEYS", "ADMIN_TOKEN", "VIEWER_TOKEN"})
# What is tried is no use of the owner's: his ledger and his collector hear nothing of it.
_UNSEEN = {"LEDGER": "off"}
_URL = re.compile(r"listens on (http://[\w.:\[\]]+)")


def isolated(environ: Mapping[str, str]) -> dict[str, str]:
    """Return of an environment what a process needs, and the settings that are no secret."""
    names = {variable.name for variable in VARIABLES} - _OURS
    settings = {name for name in names if not name.startswith("OTEL_")}
    return {k: v for k, v in environ.items() if k in _KEPT or k in settings} | _UNSEEN


class GatewayProcess:
    """A gateway that runs.

    Attributes:
        url: where it listens.
        log: the last lines that it wrote.
    """

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.url = ""
        self.log: deque[str] = deque(maxlen=LINES)
        self._process = process
        self._ready = asyncio.Event()
        self._reading = asyncio.create_task(self._read())

    async def _read(self) -> None:
        assert self._process.stderr is not None
        with contextlib.suppress(ValueError):  # a line of no end
            async for line in self._process.stderr:
                self.log.append(line.decode(errors="replace"))
                if not self._ready.is_set() and (found := _URL.search(self.log[-1])):
                    self.url = found[1]
                    self._ready.set()
        self._ready.set()

    async def started(self) -> None:
        """Wait until it listens.

        Raises:
            RuntimeError: it does not.
        """
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._ready.wait(), START_S)
        if not self.url:
            raise RuntimeError(f"the gateway did not start: {''.join(self.log)[-2000:]}")

    async def stop(self) -> int | None:
        """Ask it to end; return its exit code, None where it did not end in time."""
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGTERM)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._process.wait(), STOP_S)
        return self._process.returncode

    async def end(self) -> None:
        """End it, whatever it takes."""
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.terminate()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._process.wait(), KILL_S)
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
            await self._process.wait()
        await self._reading


@asynccontextmanager
async def gateway(env: Mapping[str, str]) -> AsyncIterator[GatewayProcess]:
    """Run a gateway on a free port of loopback until the block ends.

    Args:
        env: its whole environment. No .env is read: it runs in an empty folder.

    Raises:
        RuntimeError: it does not start.
    """
    with tempfile.TemporaryDirectory() as folder:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "nexus_gateway", "serve", "--host", "127.0.0.1", "--port", "0"),
            env={**env, "PYTHONUNBUFFERED": "1"},
            cwd=folder,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            # Ctrl-C is for us to see: we end it.
            start_new_session=os.name == "posix",
        )
        running = GatewayProcess(process)
        try:
            await running.started()
            yield running
        finally:
            await running.end()


Switch = Callable[[Mapping[int, Faults]], Awaitable[None]]
Say = Callable[[str], None]

QUIET_S = 5.0
LOOK_EVERY_S = 0.05
# Over the gateway's own limits, for a machine that is busy.
SLACK_S = 10.0
LIMITS = {
    "FIRST_TOKEN_TIMEOUT_MS": "1500",
    "IDLE_TIMEOUT_MS": "1000",
    "RESPONSE_TIMEOUT_MS": "10000",
    "SHUTDOWN_TIMEOUT_MS": "3000",
    "LOG_LEVEL": "warning",
}
# As its streams may go on for long, but then somebody hears something.
DEFAULT_LIMIT_S = 180.0
SIGNS = ("Traceback (most recent call last)", "never retrieved", "was never awaited")


@dataclass(frozen=True, slots=True)
class Campaign:
    """What is to be done.

    Args:
        requests: how many.
        instances: how many can be asked.
        bad: how many of them misbehave.
        concurrency: how many callers at once.
        rounds: how many gateways serve one after the other.
        seed: of all chance.
        time_limit_s: after which nothing is sent any more.
    """

    requests: int = 5000
    instances: int = 5
    bad: int = 2
    concurrency: int = 50
    rounds: int = 20
    seed: int = 0
    time_limit_s: float = 300.0


async def run(campaign: Campaign, say: Say) -> Tally:
    """Run a campaign against gateways of our own.

    Args:
        campaign: what is to be done.
        say: told in a line what goes on.

    Raises:
        RuntimeError: a gateway does not start.
    """
    tally, begun_s = Tally(), time.monotonic()
    one = campaign
    plan = rounds(one.requests, one.instances, one.bad, one.rounds, one.seed)
    for number, part in enumerate(plan, 1):
        if time.monotonic() - begun_s > campaign.time_limit_s:
            break
        faults = ", then ".join(_described(part))
        say(f"round {number} of {len(plan)}, {part.end - part.first} requests: {faults}")
        async with Mock(one.instances, seed=one.seed * 1_000_003 + number) as mock:
            watching = asyncio.create_task(_watch(tally))
            try:
                await _round(campaign, part, mock, tally, begun_s)
            finally:
                watching.cancel()
    return _ended(campaign, tally, begun_s)


async def _watch(tally: Tally) -> None:
    """Note how late this process is: what stands behind the gateway is then late as well."""
    while True:
        due_s = time.monotonic() + LOOK_EVERY_S
        await asyncio.sleep(LOOK_EVERY_S)
        tally.late_s = max(tally.late_s, time.monotonic() - due_s)


def _described(part: Round) -> Iterator[str]:
    """Name the faults of each phase as they are written after `mock --fault`."""
    for phase in part.phases:
        yield " ".join(
            f"{number}:{name}" if value is None else f"{number}:{name}={value}"
            for number, faults in phase.faults.items()
            for name, value in faults.items()
        )


async def _round(campaign: Campaign, part: Round, mock: Mock, tally: Tally, begun_s: float) -> None:
    async def switch(faults: Mapping[int, Faults]) -> None:
        for number, own in faults.items():
            mock.set(number, own)

    await switch(part.phases[0].faults)
    attempts = {"MAX_ATTEMPTS": str(max(6, campaign.instances + 1))}
    env = {**LIMITS, **attempts, **isolated(os.environ), **mock.environment()}
    settings = Settings.from_env(env)
    limit_s = (settings.response_timeout_ms + settings.idle_timeout_ms) / 1000 + SLACK_S
    async with gateway(env) as process, client(campaign.concurrency) as session:
        callers = _Callers(campaign, session, process.url, limit_s, tally, begun_s, KEY)
        await callers.send(part, switch)
        await _check_quiet(session, process, mock, tally)
        code = await process.stop()
        if code != 0:
            what = "did not exit" if code is None else f"exited with {code}"
            tally.blame(Broken.BAD_EXIT, f"it {what}; its last lines: {_tail(process)}")
    _check_log(process, tally)
    tally.hits.update({i.number: i.requests for i in mock.instances})
    for instance in mock.instances:
        tally.befallen.update(instance.hit)


async def run_against(campaign: Campaign, url: str, mock_url: str | None, say: Say) -> Tally:
    """Run a campaign against a gateway that runs already before a mock.

    Args:
        campaign: what is to be done; its instances are as many as the mock has.
        url: of the gateway.
        mock_url: of the mock whose faults are to change; None: they stay as they are.
        say: told in a line what goes on.

    Raises:
        aiohttp.ClientError, OSError: the mock does not answer.
    """
    tally, begun_s = Tally(), time.monotonic()
    one = campaign
    async with client(campaign.concurrency) as session:
        callers = _Callers(campaign, session, url, DEFAULT_LIMIT_S, tally, begun_s, KEY)
        faults = _Remote(session, mock_url)
        plan = rounds(one.requests, one.instances, one.bad, one.rounds, one.seed)
        await faults.clear(range(1, one.instances + 1))
        try:
            for number, part in enumerate(plan, 1):
                say(f"part {number} of {len(plan)}: {part.end - part.first} requests")
                await callers.send(part, faults.switch)
        finally:
            await faults.clear(range(1, one.instances + 1))
        try:
            tally.health = await _health(session, url)
        except (aiohttp.ClientError, ValueError, TimeoutError):
            tally.health = {}
    return _ended(campaign, tally, begun_s)


class _Remote:
    """The faults of a mock that runs elsewhere.

    Args:
        session: an HTTP client.
        url: of the mock, None for none.
    """

    def __init__(self, session: aiohttp.ClientSession, url: str | None) -> None:
        self._session = session
        self._url = url

    async def switch(self, faults: Mapping[int, Faults]) -> None:
        if self._url is None:
            return
        for number, own in faults.items():
            async with self._session.put(f"{self._url}/faults/{number}", json=own) as response:
                response.raise_for_status()

    async def clear(self, numbers: range) -> None:
        await self.switch({number: {} for number in numbers})


@dataclass(frozen=True, slots=True)
class _Callers:
    """So many callers at once, until all is sent."""

    campaign: Campaign
    session: aiohttp.ClientSession
    url: str
    limit_s: float
    tally: Tally
    begun_s: float
    key: str

    async def send(self, part: Round, switch: Switch) -> None:
        numbers = iter(range(part.first, part.end))
        phases = {phase.first: phase for phase in part.phases}
        callers = min(self.campaign.concurrency, part.end - part.first)
        async with asyncio.TaskGroup() as group:
            for _ in range(callers):
                group.create_task(self._caller(numbers, phases, switch))

    async def _caller(
        self, numbers: Iterator[int], phases: Mapping[int, Phase], switch: Switch
    ) -> None:
        for number in numbers:
            if time.monotonic() - self.begun_s > self.campaign.time_limit_s:
                return
            if phase := phases.get(number):
                await switch(phase.faults)
            await self._one(number)

    async def _one(self, number: int) -> None:
        one = asked(number, self.campaign.seed)
        self.tally.requests += 1
        answered = await ask(self.session, self.url, one, self.limit_s)
        if answered is None:
            self.tally.endings[Ending.LEFT] += 1
            return
        self.tally.add(one, answered, judge(one, answered, self.key))


async def _health(session: aiohttp.ClientSession, url: str) -> dict[str, Any]:
    async with asyncio.timeout(QUIET_S), session.get(f"{url}/health") as response:
        found: dict[str, Any] = await response.json()
        return found


async def _check_quiet(
    session: aiohttp.ClientSession, process: GatewayProcess, mock: Mock, tally: Tally
) -> None:
    """Look whether everything that was begun has ended."""
    end_s = time.monotonic() + QUIET_S
    while True:
        try:
            health = tally.health = await _health(session, process.url)
        except (aiohttp.ClientError, ValueError, TimeoutError) as error:
            tally.blame(Broken.LEFT_OPEN, f"/health does not answer: {type(error).__name__}")
            return
        held = [health["inFlightRequests"], *(p["inFlight"] for p in health["providers"])]
        upstream = [instance.open for instance in mock.instances]
        if not any(held) and not any(upstream):
            return
        if time.monotonic() > end_s:
            why = f"in flight {held[0]}, by instance {held[1:]}, at the upstreams {upstream}"
            tally.blame(Broken.LEFT_OPEN, why)
            return
        await asyncio.sleep(LOOK_EVERY_S)


def _check_log(process: GatewayProcess, tally: Tally) -> None:
    log = "".join(process.log)
    if KEY in log:
        tally.blame(Broken.KEY_TOLD, "in the log")
    if any(sign in log for sign in SIGNS):
        tally.blame(Broken.TRACEBACK, _tail(process))


def _tail(process: GatewayProcess) -> str:
    return "".join(process.log)[-2000:]


def _ended(campaign: Campaign, tally: Tally, begun_s: float) -> Tally:
    tally.took_s = time.monotonic() - begun_s
    if tally.requests < campaign.requests:
        why = f"{tally.requests} of {campaign.requests} in {campaign.time_limit_s:.0f} s"
        tally.blame(Broken.NOT_DONE, why)
    return tally
