"""What is told once the gateway serves: a screen for people, or lines of the log as JSON.

Who reads the log by machine would stumble over a screen, so with LOG_FORMAT=json there is none:
what it says is one line, and one more for each remark.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypedDict

from nexus_gateway import __version__
from nexus_gateway.cli.text import paragraph, show, table
from nexus_gateway.discovery import prefix
from nexus_gateway.hooks import Hook, overridden
from nexus_gateway.routing.policies import OUR_POLICIES, Policy
from nexus_gateway.routing.pool import DEMO, Pool
from nexus_gateway.settings import Settings
from nexus_gateway.web.auth import is_loopback

logger = logging.getLogger("nexus_gateway")

LEFT_OUT, NOTE, WARNING = "left out", "note", "WARNING"


class Extras(TypedDict):
    """What is installed beside providers, by name."""

    policy_by_name: Mapping[str, Policy]
    hooks: Mapping[str, Hook]


@dataclass(frozen=True, slots=True)
class Prepared:
    """All that is needed to serve."""

    settings: Settings
    pool: Pool
    plugins: Extras


class StartupReport(TypedDict):
    """What is told at the start; a worker sends it to the supervisor, who tells it.

    Args:
        screen: lines for people.
        said: a message for the log, with its fields.
        remarks: warnings for the log.
    """

    screen: list[str]
    said: Mapping[str, Any]
    remarks: list[str]


def startup_report(ready: Prepared, host: str, port: int, workers: int = 1) -> StartupReport:
    """Return what is to be told.

    Args:
        ready: what serves.
        host: where it listens.
        port: where it listens.
        workers: how many serve.
    """
    if ready.settings.log_format != "json":
        return StartupReport(screen=[*_screen(ready, host, port, workers)], said={}, remarks=[])
    found = _warnings(ready.settings, ready.pool, host)
    # How grave it is, the log says in its own way.
    remarks = [f"{kind}: {text}" if kind == LEFT_OUT else text for kind, text in found]
    return StartupReport(screen=[], said=_fields(ready, host, port, workers), remarks=remarks)


def announce(start: StartupReport) -> None:
    """Tell it on stderr."""
    if start["screen"]:
        show(start["screen"])
        return
    logger.info("the gateway listens", extra={"fields": start["said"]})
    for remark in start["remarks"]:
        logger.warning("%s", remark)


def _fields(ready: Prepared, host: str, port: int, workers: int) -> dict[str, Any]:
    """Return what the screen shows, for a machine."""
    pool, plugins = ready.pool, ready.plugins
    return {
        "version": __version__,
        "url": f"http://{_shown(host)}:{port}",
        "control_center": f"http://{_reachable(host)}:{port}/",
        "workers": workers,
        "live": {instance.name: instance.model for instance in pool.instances},
        "without_a_key": _absent(pool),
        "policies": [*plugins["policy_by_name"]],
        "hooks": [*plugins["hooks"]],
    }


def _screen(ready: Prepared, host: str, port: int, workers: int) -> Iterator[str]:
    """Give the lines of the start screen."""
    settings, pool, plugins = ready.settings, ready.pool, ready.plugins
    yield f"Nexus Gateway {__version__} listens on http://{_shown(host)}:{port}"
    if workers > 1:
        yield f"with {workers} workers"
    yield ""
    rows = [(i.name, i.model) for i in pool.instances]
    yield from ("  " + line for line in table(("live", "model"), rows).splitlines())
    yield from _at_work(plugins)
    if absent := _absent(pool):
        hint = f"(set {prefix(absent[0])}_KEY_1 or its like)"
        yield from paragraph(f"without a key: {', '.join(absent)} {hint}", indent="  ", hang="    ")
    for kind, text in _warnings(settings, pool, host):
        yield from paragraph(f"{kind}: {text}" if kind else text, indent="  ", hang="    ")
    yield ""
    address = f"http://{_reachable(host)}:{port}"
    closed = " (closed: ADMIN_TOKEN is not set)" if _is_closed(settings, host) else ""
    yield f"Control Center: {address}/{closed}"
    yield "Try it:"
    key = ' -H "Authorization: Bearer $GATEWAY_KEY"' if settings.gateway_keys else ""
    flags = "-gN" if "[" in address else "-N"  # -g: brackets are no pattern
    yield (
        f"  curl {flags} {address}/v1/chat/completions{key} "
        """-d '{"messages":[{"role":"user","content":"Hello!"}]}'"""
    )
    yield ""


def _shown(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _reachable(host: str) -> str:
    """Return by which name this machine reaches what listens there."""
    return {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, _shown(host))  # noqa: S104


def _is_closed(settings: Settings, host: str) -> bool:
    """Tell whether nobody may look: from elsewhere that takes a token, and there is none."""
    return not (is_loopback(host) or settings.admin_token or settings.viewer_token)


def _at_work(plugins: Extras) -> Iterator[str]:
    """Say which ways to route there are beside ours, and which hooks see what."""
    if added := [name for name in plugins["policy_by_name"] if name not in OUR_POLICIES]:
        yield f"  policies: also {', '.join(added)}"
    for name, hook in plugins["hooks"].items():
        yield f"  hook {name}: {', '.join(overridden(hook)) or 'overrides nothing'}"


def _absent(pool: Pool) -> list[str]:
    """Name what could be live and is not."""
    present = {i.provider_name for i in pool.instances}
    loaded = [p.name for p in pool.plugins if p.name not in present and p.name != DEMO]
    return [*pool.idle, *loaded]


def _warnings(settings: Settings, pool: Pool, host: str) -> Iterator[tuple[str, str]]:
    """Say what the owner should know, each with its kind."""
    if {i.provider_name for i in pool.instances} == {DEMO} and not pool.problems:
        yield "", "no key is set: the demo answers, and no model is asked"
    for problem in pool.problems:
        yield LEFT_OUT, str(problem)
    for warning in pool.warnings:
        yield NOTE, warning
    if is_loopback(host):
        if settings.viewer_token and not settings.admin_token:
            yield NOTE, "VIEWER_TOKEN locks nothing; ADMIN_TOKEN, which would, is not set"
        return
    if not settings.gateway_keys:
        yield (
            WARNING,
            f"{host} is open to others and GATEWAY_KEYS is not set: "
            "whoever reaches this port uses your keys",
        )
    if not settings.admin_token:
        but = " to all but VIEWER_TOKEN" if settings.viewer_token else ""
        yield "", f"admin calls are closed{but}: ADMIN_TOKEN is not set"
