"""What `serve` prints once it listens: a start screen for people, or JSON lines for machines.

With LOG_FORMAT=json there is no screen, as it would break a log parser: its content becomes one log
line, and one more for each warning.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypedDict

from nexus_gateway import __version__
from nexus_gateway.cli.text import paragraph, show, table
from nexus_gateway.discovery import installed_over_ours, prefix
from nexus_gateway.hooks import Hook, overridden
from nexus_gateway.routing.policies import OUR_POLICIES, Policy
from nexus_gateway.routing.pool import DEMO, Pool
from nexus_gateway.settings import MEMORY, Settings, hosts_of

logger = logging.getLogger("nexus_gateway")

LEFT_OUT, NOTE, WARNING = "left out", "note", "WARNING"


class Extras(TypedDict):
    """The plugins beside providers, by name."""

    policy_by_name: Mapping[str, Policy]
    hooks: Mapping[str, Hook]


@dataclass(frozen=True, slots=True)
class Prepared:
    """All that is needed to serve."""

    settings: Settings
    pool: Pool
    plugins: Extras


class StartupReport(TypedDict):
    """What to print at the start. A worker sends it to the supervisor, so its keys never change.

    Args:
        screen: lines for people.
        said: the fields of a log line.
        remarks: warnings for the log.
    """

    screen: list[str]
    said: Mapping[str, Any]
    remarks: list[str]


def startup_report(ready: Prepared, host: str, port: int, workers: int = 1) -> StartupReport:
    if ready.settings.log_format != "json":
        return StartupReport(screen=[*_screen(ready, host, port, workers)], said={}, remarks=[])
    found = _warnings(ready.settings, ready.pool, host)
    # The log has levels, so the words "note" and "WARNING" are not repeated.
    remarks = [f"{kind}: {text}" if kind == LEFT_OUT else text for kind, text in found]
    return StartupReport(screen=[], said=_fields(ready, host, port, workers), remarks=remarks)


def announce(report: StartupReport) -> None:
    """Print the report on stderr, or log it."""
    if report["screen"]:
        show(report["screen"])
        return
    logger.info("the gateway listens", extra={"fields": report["said"]})
    for remark in report["remarks"]:
        logger.warning("%s", remark)


def _fields(ready: Prepared, host: str, port: int, workers: int) -> dict[str, Any]:
    pool, plugins = ready.pool, ready.plugins
    return {
        "version": __version__,
        "url": f"http://{_bracketed(host)}:{port}",
        "control_center": f"http://{reachable(host)}:{port}/",
        "workers": workers,
        "live": {instance.name: instance.model for instance in pool.instances},
        "without_a_key": _unconfigured(pool),
        "policies": [*plugins["policy_by_name"]],
        "hooks": [*plugins["hooks"]],
    }


def _screen(ready: Prepared, host: str, port: int, workers: int) -> Iterator[str]:
    settings, pool, plugins = ready.settings, ready.pool, ready.plugins
    yield f"Nexus Gateway {__version__} listens on http://{_bracketed(host)}:{port}"
    if workers > 1:
        yield f"with {workers} workers"
    yield ""
    rows = [(i.name, i.model) for i in pool.instances]
    yield from ("  " + line for line in table(("instance", "model"), rows).splitlines())
    yield from _plugins(plugins)
    if names := _unconfigured(pool):
        hint = f"(to add one, set {prefix(names[0])}_KEY_1, for example)"
        yield from paragraph(f"without a key: {', '.join(names)} {hint}", indent="  ", hang="    ")
    for kind, text in _warnings(settings, pool, host):
        yield from paragraph(f"{kind}: {text}" if kind else text, indent="  ", hang="    ")
    yield ""
    address = f"http://{reachable(host)}:{port}"
    closed = " (closed: ADMIN_TOKEN is not set)" if _is_closed(settings) else ""
    yield f"Control Center: {address}/{closed}"
    yield "Try it:"
    key = ' -H "Authorization: Bearer $GATEWAY_KEY"' if settings.gateway_keys else ""
    flags = "-gN" if "[" in address else "-N"  # -g: brackets are not a pattern
    yield (
        f"  curl {flags} {address}/v1/chat/completions{key} "
        """-d '{"messages":[{"role":"user","content":"Hello!"}]}'"""
    )
    yield ""


def _bracketed(host: str) -> str:
    """Return the first of the hosts, as it stands in a URL."""
    host = hosts_of(host)[0]
    return f"[{host}]" if ":" in host else host


def reachable(host: str) -> str:
    """Return a host by which this machine reaches the gateway."""
    shown = _bracketed(host)
    return {"0.0.0.0": "127.0.0.1", "[::]": "[::1]"}.get(shown, shown)  # noqa: S104


def _is_closed(settings: Settings) -> bool:
    """Return whether the Control Center needs a token and none is set."""
    return not (settings.is_local or settings.admin_token or settings.viewer_token)


def _plugins(plugins: Extras) -> Iterator[str]:
    if added := [name for name in plugins["policy_by_name"] if name not in OUR_POLICIES]:
        yield f"  additional policies: {', '.join(added)}"
    for name, hook in plugins["hooks"].items():
        yield f"  hook {name}: {', '.join(overridden(hook)) or 'overrides nothing'}"


def _unconfigured(pool: Pool) -> list[str]:
    """Return the names of the installed providers that have no instance."""
    present = {i.provider_name for i in pool.instances}
    loaded = [p.name for p in pool.plugins if p.name not in present and p.name != DEMO]
    return [*pool.idle, *loaded]


def _warnings(settings: Settings, pool: Pool, host: str) -> Iterator[tuple[str, str]]:
    if warning := installed_over_ours():
        yield WARNING, warning
    yield from warnings(settings, pool, host)


def warnings(settings: Settings, pool: Pool, host: str) -> Iterator[tuple[str, str]]:
    """Yield what the operator should know of the settings, each with its kind."""
    if {i.provider_name for i in pool.instances} == {DEMO} and not pool.problems:
        yield "", "no API key configured; serving the built-in demo"
    for problem in pool.problems:
        yield LEFT_OUT, str(problem)
    for warning in pool.warnings:
        yield NOTE, warning
    if settings.web_concurrency > 1 and settings.response_store == MEMORY:
        yield (
            NOTE,
            "RESPONSE_STORE is memory: each worker knows only the responses that it made, so "
            "previous_response_id often fails; set sqlite:/// and the path of a file",
        )
    if settings.is_local:
        if settings.viewer_token and not settings.admin_token:
            yield NOTE, "VIEWER_TOKEN alone restricts nothing: set ADMIN_TOKEN as well"
        return
    if not settings.gateway_keys:
        yield (
            WARNING,
            f"{host} is open to others and GATEWAY_KEYS is not set: "
            "anyone who reaches this port can use your keys",
        )
    if not settings.admin_token:
        scope = " to all but VIEWER_TOKEN" if settings.viewer_token else ""
        yield "", f"admin calls are closed{scope}: ADMIN_TOKEN is not set"
