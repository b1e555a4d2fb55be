"""`nexus-gateway doctor`: what will break or hurt here, before it does."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import email.utils
import errno
import json
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any

import aiohttp
from yarl import URL

from nexus_gateway import __version__
from nexus_gateway.cli.banner import LEFT_OUT, reachable, warnings
from nexus_gateway.cli.environment import serve_environment
from nexus_gateway.cli.serve import configure
from nexus_gateway.discovery import installed_over_ours
from nexus_gateway.errors import ConfigError
from nexus_gateway.provider import InProcess, Provider
from nexus_gateway.routing.instance import Instance
from nexus_gateway.routing.pool import Pool
from nexus_gateway.server.process import limit_of_descriptors
from nexus_gateway.server.sockets import listen, os_error_text
from nexus_gateway.settings import MEMORY, Settings
from nexus_gateway.upstream.proxy import proxy_of
from nexus_gateway.web.bodies import memory_limit

BREAKS, HURTS, GOOD = "breaks", "hurts", "good"
BROKEN = 1
WORKER_MIB = 64  # docs/deployment.md: about 45 at the start
FEW_FILES = 1024  # each running request takes two
WRONG_CLOCK_S = 60
LIST_TIMEOUT_S = 10
LOCAL_TIMEOUT_S = 5


@dataclass(frozen=True, slots=True)
class Finding:
    kind: str
    text: str


@dataclass(frozen=True, slots=True)
class Host:
    """A kind of host: how long it waits after SIGTERM, and whether its disk is lost."""

    name: str
    mark: str  # a variable that only it sets
    grace_s: float  # by default
    setting: str  # what extends it, "" for nothing
    volumes: tuple[str, ...] = ()  # variables with the folders that are kept
    grace_variable: str = ""

    @property
    def remedy(self) -> str:
        lower = "lower SHUTDOWN_TIMEOUT_MS"
        return f"{lower} or raise {self.setting}, unless you have" if self.setting else lower


# Sources: docs.railway.com (deployments, 0 s by default), render.com/docs/deploys (30 s),
# devcenter.heroku.com/articles/dynos (30 s), kubernetes.io (pod lifecycle, 30 s).
HOSTS = (
    Host(
        "Railway",
        "RAILWAY_ENVIRONMENT_ID",
        0,
        "drainingSeconds in railway.json or RAILWAY_DEPLOYMENT_DRAINING_SECONDS",
        ("RAILWAY_VOLUME_MOUNT_PATH",),
        "RAILWAY_DEPLOYMENT_DRAINING_SECONDS",
    ),
    Host("Render", "RENDER_SERVICE_ID", 30, "maxShutdownDelaySeconds in render.yaml"),
    Host("Heroku", "DYNO", 30, ""),
    Host("Kubernetes", "KUBERNETES_SERVICE_HOST", 30, "terminationGracePeriodSeconds of the pod"),
)


@dataclass(frozen=True, slots=True)
class Machine:
    """What the checks read of the machine; tests pass their own."""

    env: Mapping[str, str]
    memory: float = math.inf  # the limit, in bytes
    files: float = math.inf
    mounts: frozenset[str] = field(default_factory=frozenset)

    @property
    def host(self) -> Host | None:
        return next((host for host in HOSTS if self.env.get(host.mark)), None)


def this_machine(env: Mapping[str, str]) -> Machine:
    mounts: set[str] = set()
    with contextlib.suppress(OSError):
        lines = Path("/proc/self/mounts").read_text(encoding="utf-8").splitlines()
        # A file system in memory keeps nothing.
        mounts = {line.split()[1] for line in lines if line.split()[2] not in ("tmpfs", "overlay")}
    files = limit_of_descriptors(hard=True)  # the gateway raises its own limit to that
    return Machine(env, memory_limit() or math.inf, files, frozenset(mounts))


def doctor(arguments: argparse.Namespace) -> int:
    """Print what was found; return 1 if something will break."""
    env = serve_environment(arguments)
    machine = this_machine(env)
    findings = [*installation()]
    try:
        settings, pool = configure(env, demo=False)
    except ConfigError as error:
        findings += [Finding(BREAKS, problem) for problem in error.problems]
    else:
        findings += [*of_settings(settings, pool), *of_files(settings)]
        findings += [*of_host(settings, machine), *of_port(settings)]
        if not arguments.offline:
            findings += asyncio.run(of_upstreams(settings, pool, time.time))
    if not findings:
        findings = [Finding(GOOD, f"Nexus Gateway {__version__}: nothing was found")]
    for finding in findings:
        print(f"{finding.kind:6}  {finding.text}")
    return BROKEN if any(finding.kind == BREAKS for finding in findings) else 0


def installation() -> Iterator[Finding]:
    if warning := installed_over_ours():
        yield Finding(BREAKS, f"{warning}.")


def of_settings(settings: Settings, pool: Pool) -> Iterator[Finding]:
    """Yield what the start screen warns of as well."""
    for kind, text in warnings(settings, pool, settings.host):
        yield Finding(HURTS, f"{kind}: {text}" if kind == LEFT_OUT else text)


def _files(settings: Settings) -> Iterator[tuple[str, Path]]:
    """Yield the files that the gateway writes, each with its variable."""
    for name, path in (("LEDGER", settings.ledger), ("RESPONSE_STORE", settings.response_store)):
        if path and path != MEMORY:
            yield name, Path(path)


def of_files(settings: Settings) -> Iterator[Finding]:
    for name, path in _files(settings):
        nearest = next(p for p in (path, *path.absolute().parents) if os.path.exists(p))
        if not os.access(nearest, os.W_OK) or nearest.is_file() != (nearest == path):
            yield Finding(
                HURTS,
                f"{name} is {path}, which cannot be written: set it to another file, or to off.",
            )


def of_host(settings: Settings, machine: Machine) -> Iterator[Finding]:
    host = machine.host
    drain_s = settings.shutdown_timeout_ms / 1000
    if host:
        with contextlib.suppress(ValueError):
            grace_s = float(machine.env.get(host.grace_variable) or host.grace_s)
            if grace_s <= drain_s:
                yield Finding(
                    HURTS,
                    f"{host.name} by default kills the gateway {host.grace_s:g} s after SIGTERM, "
                    f"and streams may need {drain_s:g} s: {host.remedy}.",
                )
        for name, path in _files(settings):
            if not _is_kept(path, host, machine):
                yield Finding(
                    HURTS,
                    f"{name} is on a disk that {host.name} discards with each deployment: set it "
                    "to a path on a volume, or to off.",
                )
        if settings.is_local:
            yield Finding(
                HURTS,
                f"nothing outside of this {host.name} container reaches {settings.host}: set HOST "
                "to 0.0.0.0, unless `serve` has --host.",
            )
    needed_mib = WORKER_MIB * settings.web_concurrency
    limit_mib = machine.memory / 2**20
    if limit_mib < needed_mib:
        yield Finding(
            BREAKS,
            f"{settings.web_concurrency} worker(s) need about {needed_mib} MiB, and the limit of "
            f"this container is {limit_mib:.0f} MiB: set WEB_CONCURRENCY to fewer.",
        )
    if machine.files < FEW_FILES:
        yield Finding(
            HURTS,
            f"a process may open {machine.files:g} files, and each running request takes two: "
            "raise it (ulimit -n 65536).",
        )


def _is_kept(path: Path, host: Host, machine: Machine) -> bool:
    folders = {machine.env.get(name, "") for name in host.volumes} | machine.mounts
    parents = {str(parent) for parent in path.parents} - {"/", ""}
    return bool(parents & folders)


def of_port(settings: Settings) -> Iterator[Finding]:
    if not settings.port:
        return
    try:
        for listener in listen(settings.host, settings.port, 1)[0]:
            listener.close()
    except OSError as error:
        is_taken = error.errno == errno.EADDRINUSE
        if is_taken and _gateway_listens(settings):
            yield Finding(GOOD, f"a gateway answers on port {settings.port} already.")
            return
        remedy = "End what listens there, or set PORT" if is_taken else "Set HOST or PORT"
        yield Finding(
            BREAKS,
            f"cannot listen on {settings.host} port {settings.port}: {os_error_text(error)}. "
            f"{remedy}.",
        )


def _gateway_listens(settings: Settings) -> bool:
    """Return whether it is a gateway that has the port, such as the one of this container."""
    host = reachable(settings.host).strip("[]")
    with contextlib.closing(HTTPConnection(host, settings.port, timeout=LOCAL_TIMEOUT_S)) as local:
        try:
            local.request("GET", "/health")
            health = json.load(local.getresponse())
        except (OSError, HTTPException, ValueError):
            return False
    return isinstance(health, dict) and "inFlightRequests" in health


async def of_upstreams(settings: Settings, pool: Pool, clock: Callable[[], float]) -> list[Finding]:
    """Ask each upstream for its models: is ours among them, and what time is it there?"""
    instances = [i for i in pool.instances if not isinstance(i.provider, InProcess)]
    timeout = aiohttp.ClientTimeout(total=LIST_TIMEOUT_S)
    async with aiohttp.ClientSession(timeout=timeout, trust_env=False) as session:
        asked = [_of_upstream(session, settings, instance, clock) for instance in instances]
        found = [finding for findings in await asyncio.gather(*asked) for finding in findings]
    return list(dict.fromkeys(found))


async def _of_upstream(
    session: aiohttp.ClientSession,
    settings: Settings,
    instance: Instance,
    clock: Callable[[], float],
) -> list[Finding]:
    account, provider = instance.account, instance.provider
    url = URL(f"{account.base_url.rstrip('/')}/models")
    headers = {**provider.headers, **provider.authorize(account.key)}
    try:
        async with session.get(url, headers=headers, proxy=proxy_of(settings, url)) as response:
            status, date = response.status, response.headers.get("Date", "")
            listed = await response.json(content_type=None) if status == 200 else None
    except (aiohttp.ClientError, OSError, ValueError) as error:
        return [
            Finding(HURTS, f"{instance.name}: {url.host} did not answer ({type(error).__name__}).")
        ]
    return [
        *_of_clock(date, clock()),
        *_of_answer(instance, status, listed),
    ]


def _of_clock(date: str, now_s: float) -> Iterator[Finding]:
    try:
        ahead_s = now_s - email.utils.parsedate_to_datetime(date).timestamp()
    except ValueError:
        return
    if abs(ahead_s) > WRONG_CLOCK_S:
        word = "ahead of" if ahead_s > 0 else "behind"
        minutes = round(abs(ahead_s) / 60)
        yield Finding(
            HURTS,
            f"the clock is about {minutes} minutes {word} the upstreams': certificates, usage and "
            "limits that name a time depend on it.",
        )


def _of_answer(instance: Instance, status: int, listed: Any) -> Iterator[Finding]:
    if status == 401:
        yield Finding(BREAKS, f"{instance.name}: the key is refused (401).")
    if type(instance.provider).url is not Provider.url:
        return  # its list may have other names: of models, where a request names a deployment
    entries = listed.get("data") if isinstance(listed, dict) else None
    if not isinstance(entries, list) or not entries or listed.get("has_more"):
        return
    ids = {str(entry.get("id")) for entry in entries if isinstance(entry, dict)}
    # Some list models/NAME.
    ids |= {id.removeprefix("models/") for id in ids}
    for model in instance.models:
        if model not in ids:
            yield Finding(HURTS, f"{instance.name}: the upstream does not list the model {model}.")
