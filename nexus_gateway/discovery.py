"""From entry points to plugins: found, loaded, and left out by name where they are broken.

Providers, policies and hooks come through one door; each is a `PluginKind` with a group of entry points
and its own idea of what a fit class is.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from importlib import metadata
from typing import Generic, TypeVar

from nexus_gateway.provider import ANY_MODEL, API_VERSION, CHAT, ENDPOINTS, KINDS, Model, Provider

OURS = "nexus-gateway"
# A letter first: no shell can set a variable that begins with a digit.
NAME = re.compile(r"[a-z]([a-z0-9_-]*[a-z0-9])?")
# RESPONSE_MODEL is a setting of the gateway's own.
RESERVED = ANY_MODEL | {"response"}
_LONGEST_REASON = 200
_OPTION = re.compile(r"[A-Z][A-Z0-9_]*")
_TAKEN = frozenset({"API_KEY", "BASE_URL", "IMAGES", "MODEL"})
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class PluginKind(Generic[T]):
    """A kind of plugin.

    Args:
        word: what people call it.
        group: the group of its entry points.
        faults: tells where a class does not keep the contract.
        reserved: names that none may have.
    """

    word: str
    group: str
    faults: Callable[[object], Iterator[str]]
    reserved: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Plugin(Generic[T]):
    """A plugin that can be used."""

    name: str
    cls: type[T]
    distribution: str
    version: str
    entry_point: str

    @property
    def origin(self) -> str:
        """Who made it: `nexus-acme 1.0.0`."""
        return f"{self.distribution} {self.version}".strip()


@dataclass(frozen=True, slots=True)
class PluginProblem:
    """A plugin that was left out, and why.

    Args:
        kind: what people call its kind.
        name: of its entry point.
        distribution: that it came in.
        version: of that.
        entry_point: where its class should be.
        reason: in our words.
        detail: what a foreign exception said: for the owner's eyes, as it may hold a path.
    """

    kind: str
    name: str
    distribution: str
    version: str
    entry_point: str
    reason: str
    detail: str = ""

    def __str__(self) -> str:
        """Tell all of it in one line."""
        made_by = f"{self.distribution} {self.version}".strip()
        why = f"{self.reason}: {self.detail}" if self.detail else self.reason
        return f"{self.kind} {self.name} ({made_by}, {self.entry_point}): {why}"


@dataclass(slots=True)
class Discovered(Generic[T]):
    """What is installed of one kind.

    Args:
        plugins: those that can be used.
        idle: the names of those that were not asked for, and not loaded.
        problems: those that were left out.
    """

    plugins: list[Plugin[T]] = field(default_factory=list)
    idle: list[str] = field(default_factory=list)
    problems: list[PluginProblem] = field(default_factory=list)

    def owner(self, name: str) -> str | None:
        """Return who has a name (or one with the same variables) already, None if nobody."""
        for plugin in self.plugins:
            if prefix(plugin.name) == prefix(name):
                return f"{plugin.name} of {plugin.distribution}"
        return next((f"{n} of {OURS}" for n in self.idle if prefix(n) == prefix(name)), None)

    def leave_out(self, kind: PluginKind[T], plugin: Plugin[T], reason: str) -> None:
        """Make a plugin that was loaded one that cannot be used."""
        about = (plugin.name, plugin.distribution, plugin.version, plugin.entry_point)
        self.problems.append(PluginProblem(kind.word, *about, reason))
        self.plugins.remove(plugin)


def prefix(name: str) -> str:
    """Return the prefix of a provider's variables: `acme-x` has ACME_X."""
    return name.upper().replace("-", "_")


class _Unfit(Exception):
    """Why a plugin cannot be used; `error` is the foreign exception that said so."""

    def __init__(self, reason: str, error: BaseException | None = None) -> None:
        super().__init__(reason if error is None else f"{reason}: {type(error).__name__}")
        self.detail = "" if error is None else _first_line(error)


def discover(
    kind: PluginKind[T],
    entry_points: Iterable[metadata.EntryPoint] | None = None,
    wanted: Callable[[str], bool] | None = None,
) -> Discovered[T]:
    """Find and load the installed plugins of a kind.

    Where two have one name, ours stays, else the distribution first in the alphabet. No plugin's
    failure goes further than to its own problem.

    Args:
        kind: which.
        entry_points: those to load; None for all that are installed.
        wanted: whether one of ours, by its name, is asked for: what is not isn't imported. Those
            of others are: only their class can tell whether they need to be asked for.
    """
    found: Discovered[T] = Discovered()
    points = metadata.entry_points(group=kind.group) if entry_points is None else entry_points
    for (distribution, version), point in _in_order(points):
        if wanted and distribution == OURS and not wanted(point.name):
            found.idle.append(point.name)
            continue
        try:
            cls = _load(kind, point, found)
        except _Unfit as error:
            about = (point.name, distribution, version, point.value)
            found.problems.append(PluginProblem(kind.word, *about, str(error), error.detail))
        else:
            found.plugins.append(Plugin(point.name, cls, distribution, version, point.value))
    return found


def make(kind: PluginKind[T], found: Discovered[T]) -> dict[str, T]:
    """Make an object of each plugin, in the order of the names; what cannot be made is left out."""
    made: dict[str, T] = {}
    for plugin in sorted(found.plugins, key=lambda p: p.name):
        try:
            made[plugin.name] = plugin.cls()
        except (Exception, SystemExit) as error:
            found.leave_out(kind, plugin, f"it could not be made: {type(error).__name__}")
    return made


def _in_order(
    entry_points: Iterable[metadata.EntryPoint],
) -> list[tuple[tuple[str, str], metadata.EntryPoint]]:
    """Give entry points in their order of precedence, each with who made it, and which version."""
    # Each look at a name or a version parses the whole of a distribution's metadata.
    origins: dict[int, tuple[str, str]] = {}
    found = []
    for point in entry_points:
        if id(point.dist) not in origins:
            dist = point.dist
            origins[id(dist)] = (dist.name, dist.version) if dist else ("unknown", "")
        found.append((origins[id(point.dist)], point))

    def precedence(one: tuple[tuple[str, str], metadata.EntryPoint]) -> tuple[bool, str, str]:
        (distribution, _), point = one
        return distribution.lower().replace("_", "-") != OURS, distribution, point.name

    return sorted(found, key=precedence)


def _load(kind: PluginKind[T], entry_point: metadata.EntryPoint, found: Discovered[T]) -> type[T]:
    """Load one plugin and check it against the contract and those present."""
    name = entry_point.name
    if not NAME.fullmatch(name):
        raise _Unfit("its name may hold only a-z, 0-9, - and _, and begins with a letter")
    if name in kind.reserved:
        raise _Unfit("its name is reserved")
    if owner := found.owner(name):
        raise _Unfit(f"its name is taken by {owner}")
    try:
        cls = entry_point.load()
    except (Exception, SystemExit) as error:
        raise _Unfit("it failed to load", error) from error
    try:
        reasons = [*kind.faults(cls)]
    except Exception as error:
        raise _Unfit("it does not keep the contract", error) from error
    title = getattr(cls, "title", None)
    if not reasons and title and any(getattr(p.cls, "title", "") == title for p in found.plugins):
        reasons = [f"its title {title!r} is taken"]
    if reasons:
        raise _Unfit(reasons[0])
    loaded: type[T] = cls
    return loaded


def _first_line(error: BaseException) -> str:
    """Return what an exception of foreign code says, in one clean line."""
    first = next(iter(str(error).splitlines()), "")
    return "".join(c if c.isprintable() else "?" for c in first)[:_LONGEST_REASON]


def version_fault(cls: type) -> Iterator[str]:
    """Tell whether a class was written for another version of the contract."""
    version = getattr(cls, "api_version", None)
    if version != API_VERSION:
        yield f"it is for contract version {version!r}; this gateway has {API_VERSION}"


def _provider_faults(cls: object) -> Iterator[str]:
    """Tell where a class does not keep the contract of `nexus_gateway.provider`."""
    if not (isinstance(cls, type) and issubclass(cls, Provider)):
        yield "it is not a subclass of nexus_gateway.provider.Provider"
        return
    yield from version_fault(cls)
    if not (isinstance(cls.title, str) and cls.title):
        yield "its `title` is not set"
    for attribute in ("base_url", "default_model"):
        if not isinstance(getattr(cls, attribute), str):
            yield f"its `{attribute}` is not a string"
    if not isinstance(cls.stream_usage, bool):
        yield "its `stream_usage` is neither True nor False"
    yield from _model_faults(cls)
    yield from _endpoint_faults(cls)
    for name in cls.options:
        if not _OPTION.fullmatch(name) or name in _TAKEN or name.startswith("KEY_"):
            yield f"its option {name!r} is taken, or not of A-Z, 0-9 and _"
    if missing := getattr(cls, "__abstractmethods__", None):
        yield f"it does not define {', '.join(sorted(missing))}"


def _model_faults(cls: type[Provider]) -> Iterator[str]:
    if not isinstance(cls.models, tuple | list):
        yield "its `models` are not a tuple; one alone needs a comma behind it"
        return
    for model in cls.models:
        if not isinstance(model, Model):
            yield "its `models` are not all of the type Model"
        elif model.kind not in KINDS:
            yield f"its model {model.id!r} is of no known kind; there are {', '.join(KINDS)}"
        elif model.kind != CHAT and model.kind not in cls.endpoints:
            yield f"its model {model.id!r} needs {model.kind!r} in its `endpoints`"


def _endpoint_faults(cls: type[Provider]) -> Iterator[str]:
    for name, path in cls.endpoints.items():
        if name not in ENDPOINTS:
            yield f"its endpoint {name!r} is not known; there are {', '.join(ENDPOINTS)}"
        elif not path.startswith("/"):
            yield f"its endpoint {name!r} needs a path that begins with /"


PROVIDERS: PluginKind[Provider] = PluginKind(
    "provider", "nexus_gateway.providers", _provider_faults, frozenset(RESERVED)
)
