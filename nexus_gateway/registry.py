"""From entry points to plugins: found, loaded, and left out by name where they are broken."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib import metadata

from nexus_gateway.provider import API_VERSION, InProcess, Model, Provider

GROUP = "nexus_gateway.providers"
OURS = "nexus-gateway"
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]*")
# A caller's words for any model: no provider may take them.
ANY_NAMES = frozenset({"auto", "nexus"})
# RESPONSE_MODEL is a setting of the gateway's own.
RESERVED = ANY_NAMES | {"response"}
_LONGEST_REASON = 200


@dataclass(frozen=True, slots=True)
class Plugin:
    """A provider that can be used."""

    name: str
    cls: type[Provider]
    distribution: str
    version: str
    entry_point: str


@dataclass(frozen=True, slots=True)
class PluginProblem:
    """A provider that was left out, and why."""

    name: str
    distribution: str
    version: str
    entry_point: str
    reason: str


def prefix(name: str) -> str:
    """Return the prefix of a provider's variables: `acme-x` has ACME_X."""
    return name.upper().replace("-", "_")


class _Unfit(Exception):
    """Why a plugin cannot be used."""


def discover(
    entry_points: Iterable[metadata.EntryPoint] | None = None,
) -> tuple[list[Plugin], list[PluginProblem]]:
    """Find and load the installed provider plugins.

    Where two have one name, ours stays, else the distribution first in the alphabet. No plugin's
    failure goes further than to its own problem.

    Args:
        entry_points: those to load; None for all that are installed.
    """
    found = metadata.entry_points(group=GROUP) if entry_points is None else entry_points
    plugins: list[Plugin] = []
    problems: list[PluginProblem] = []
    for entry_point in sorted(found, key=_precedence):
        distribution, version = _origin(entry_point)
        about = (entry_point.name, distribution, version, entry_point.value)
        try:
            name, cls = _load(entry_point, plugins)
        except _Unfit as error:
            problems.append(PluginProblem(*about, str(error)))
        else:
            plugins.append(Plugin(name, cls, distribution, version, entry_point.value))
    return plugins, problems


def _origin(entry_point: metadata.EntryPoint) -> tuple[str, str]:
    dist = entry_point.dist
    return (dist.name, dist.version) if dist else ("unknown", "")


def _precedence(entry_point: metadata.EntryPoint) -> tuple[bool, str, str]:
    distribution = _origin(entry_point)[0]
    return distribution.lower().replace("_", "-") != OURS, distribution, entry_point.name


def _load(entry_point: metadata.EntryPoint, present: list[Plugin]) -> tuple[str, type[Provider]]:
    """Load one plugin and check it against the contract and those present."""
    name = entry_point.name
    if not _NAME.fullmatch(name):
        raise _Unfit("its name may hold only a-z, 0-9, - and _")
    if name in RESERVED:
        raise _Unfit("its name is reserved")
    for other in present:
        if prefix(other.name) == prefix(name):
            raise _Unfit(f"its name is taken by {other.name} of {other.distribution}")
    try:
        cls = entry_point.load()
    except (Exception, SystemExit) as error:
        raise _Unfit(f"it failed to load: {_told(error)}") from error
    reasons = [*_faults(cls)]
    if not reasons and any(plugin.cls.title == cls.title for plugin in present):
        reasons = [f"its title {cls.title!r} is taken"]
    if reasons:
        raise _Unfit(reasons[0])
    return name, cls


def _told(error: BaseException) -> str:
    """Tell an exception of foreign code in one clean line."""
    first = next(iter(str(error).splitlines()), "")
    text = f"{type(error).__name__}: {first}"
    return "".join(c if c.isprintable() else "?" for c in text)[:_LONGEST_REASON]


def _faults(cls: object) -> Iterator[str]:
    """Tell where a class does not keep the contract."""
    if not (isinstance(cls, type) and issubclass(cls, Provider)):
        yield "it is not a subclass of nexus_gateway.provider.Provider"
        return
    if cls.api_version != API_VERSION:
        yield f"it is for contract version {cls.api_version!r}; this gateway has {API_VERSION}"
    needed = ["title", "default_model"] + ([] if issubclass(cls, InProcess) else ["base_url"])
    for attribute in needed:
        if not (isinstance(getattr(cls, attribute), str) and getattr(cls, attribute)):
            yield f"its `{attribute}` is not set"
    if not all(isinstance(model, Model) for model in cls.models):
        yield "its `models` are not all of the type Model"
    if missing := getattr(cls, "__abstractmethods__", None):
        yield f"it does not define {', '.join(sorted(missing))}"
