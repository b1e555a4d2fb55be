"""From entry points to plugins; a broken plugin is left out and named.

Providers, policies and hooks are found the same way. Each is a `PluginKind`: a group of entry
points and a check of its contract.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from importlib import metadata
from typing import Generic, TypeVar

from nexus_gateway.provider import (
    ANY_MODEL,
    API_VERSION,
    CHAT,
    ENDPOINTS,
    KINDS,
    Adaptation,
    Model,
    Provider,
)

OURS = "nexus-ai-gateway"
# This name on PyPI is another project's, and its wheel has a package `nexus_gateway` as well.
NOT_OURS = "nexus-gateway"
# A letter first: no shell can set a variable that begins with a digit.
NAME = re.compile(r"[a-z]([a-z0-9_-]*[a-z0-9])?")
# RESPONSE_MODEL is a setting of the gateway.
RESERVED = ANY_MODEL | {"response"}
_LONGEST_REASON = 200
_OPTION = re.compile(r"[A-Z][A-Z0-9_]*")
_TAKEN_OPTIONS = frozenset(
    {"API_KEY", "BASE_URL", "FIRST_TOKEN_TIMEOUT_MS", "IMAGES", "MODEL", "MODELS", "TIER"}
)
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class PluginKind(Generic[T]):
    """A kind of plugin."""

    word: str  # in messages
    group: str  # of its entry points
    contract_errors: Callable[[object], Iterator[str]]
    reserved: frozenset[str] = frozenset()  # names that no plugin may have
    default: str = ""  # the name that `load` puts first


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
        """The distribution and its version: `nexus-acme 1.0.0`."""
        return f"{self.distribution} {self.version}".strip()


@dataclass(frozen=True, slots=True)
class PluginProblem:
    """A plugin that was left out; `kind` is the word of its kind.

    `detail` is the text of a foreign exception: for operators only, as it may contain a path.
    """

    kind: str
    name: str
    distribution: str
    version: str
    entry_point: str
    reason: str
    detail: str = ""

    def __str__(self) -> str:
        origin = f"{self.distribution} {self.version}".strip()
        reason = f"{self.reason}: {self.detail}" if self.detail else self.reason
        return f"{self.kind} {self.name} ({origin}, {self.entry_point}): {reason}"


@dataclass(slots=True)
class Discovered(Generic[T]):
    """What is installed of one kind; `idle` are those that are not needed and not imported."""

    plugins: list[Plugin[T]] = field(default_factory=list)
    idle: list[str] = field(default_factory=list)
    problems: list[PluginProblem] = field(default_factory=list)

    def leave_out(self, kind: PluginKind[T], plugin: Plugin[T], reason: str) -> None:
        """Move a loaded plugin to the problems."""
        origin = (plugin.name, plugin.distribution, plugin.version, plugin.entry_point)
        self.problems.append(PluginProblem(kind.word, *origin, reason))
        self.plugins.remove(plugin)


def prefix(name: str) -> str:
    """Return the prefix of a provider's variables: `acme-x` has ACME_X."""
    return name.upper().replace("-", "_")


def discover(
    kind: PluginKind[T],
    entry_points: Iterable[metadata.EntryPoint] | None = None,
    wanted: Callable[[str], bool] | None = None,
) -> Discovered[T]:
    """Find and import the installed plugins of a kind.

    If two have the same name, the gateway's own is used, else that of the distribution that comes
    first in the alphabet. A plugin's failure affects no other plugin. `wanted` is whether a plugin
    of the gateway's own is needed, by its name; others of them are not imported. Foreign ones
    always are: only their class shows whether they need a key.
    """
    discovered: Discovered[T] = Discovered()
    points = metadata.entry_points(group=kind.group) if entry_points is None else entry_points
    for (distribution, version), point in _by_precedence(points):
        if wanted and distribution == OURS and not wanted(point.name):
            discovered.idle.append(point.name)
            continue
        try:
            cls = _import(kind, point, discovered)
        except _Unusable as error:
            origin = (point.name, distribution, version, point.value)
            discovered.problems.append(PluginProblem(kind.word, *origin, str(error), error.detail))
        else:
            discovered.plugins.append(Plugin(point.name, cls, distribution, version, point.value))
    return discovered


def load(
    kind: PluginKind[T], entry_points: Iterable[metadata.EntryPoint] | None = None
) -> tuple[dict[str, T], Discovered[T]]:
    """Create an object of each installed plugin of a kind; leave out those that fail.

    The objects are by name: the kind's default first, the gateway's own before others.
    """
    discovered = discover(kind, entry_points)
    objects: dict[str, T] = {}

    def order(plugin: Plugin[T]) -> tuple[bool, bool, str]:
        return plugin.name != kind.default, plugin.distribution != OURS, plugin.name

    for plugin in sorted(discovered.plugins, key=order):
        try:
            objects[plugin.name] = plugin.cls()
        except (Exception, SystemExit) as error:
            reason = f"it could not be instantiated: {type(error).__name__}"
            discovered.leave_out(kind, plugin, reason)
    return objects, discovered


class _Unusable(Exception):
    """A plugin cannot be used; `error` is the foreign exception that is the cause, if any."""

    def __init__(self, reason: str, error: BaseException | None = None) -> None:
        super().__init__(reason if error is None else f"{reason}: {type(error).__name__}")
        self.detail = "" if error is None else _first_line(error)


def _first_line(error: BaseException) -> str:
    first = next(iter(str(error).splitlines()), "")
    return "".join(c if c.isprintable() else "?" for c in first)[:_LONGEST_REASON]


_Origin = tuple[str, str]  # distribution, version
_Entry = tuple[_Origin, metadata.EntryPoint]


def _by_precedence(entry_points: Iterable[metadata.EntryPoint]) -> list[_Entry]:
    # Each access to a name or version parses all metadata of a distribution.
    origins: dict[int, _Origin] = {}
    points = []
    for point in entry_points:
        if id(point.dist) not in origins:
            dist = point.dist
            origins[id(dist)] = (dist.name, dist.version) if dist else ("unknown", "")
        points.append((origins[id(point.dist)], point))

    def precedence(entry: _Entry) -> tuple[bool, str, str]:
        (distribution, _), point = entry
        return distribution.lower().replace("_", "-") != OURS, distribution, point.name

    return sorted(points, key=precedence)


def _import(kind: PluginKind[T], point: metadata.EntryPoint, discovered: Discovered[T]) -> type[T]:
    """Import one plugin, and check it against the contract and the plugins before it."""
    if not NAME.fullmatch(point.name):
        raise _Unusable("its name must begin with a letter and contain only a-z, 0-9, - and _")
    if point.name in kind.reserved:
        raise _Unusable("its name is reserved")
    if owner := _owner(point.name, discovered):
        raise _Unusable(f"its name is taken by {owner}")
    try:
        cls: type[T] = point.load()
    except (Exception, SystemExit) as error:
        raise _Unusable("it failed to load", error) from error
    try:
        reasons = [*kind.contract_errors(cls)]
    except Exception as error:
        raise _Unusable("it breaks the contract", error) from error
    title = getattr(cls, "title", None)
    titles = [getattr(plugin.cls, "title", "") for plugin in discovered.plugins]
    if not reasons and title and title in titles:
        reasons = [f"its title {title!r} is taken"]
    if reasons:
        raise _Unusable(reasons[0])
    return cls


def _owner(name: str, discovered: Discovered[T]) -> str | None:
    """Return the plugin that already has a name, or one with the same variables."""
    for plugin in discovered.plugins:
        if prefix(plugin.name) == prefix(name):
            return f"{plugin.name} of {plugin.distribution}"
    return next((f"{n} of {OURS}" for n in discovered.idle if prefix(n) == prefix(name)), None)


def version_error(cls: type) -> Iterator[str]:
    """Yield an error if a class was written for another version of the contract."""
    version = getattr(cls, "api_version", None)
    if version != API_VERSION:
        yield f"it is for contract version {version!r}; this gateway has {API_VERSION}"


def _provider_errors(cls: object) -> Iterator[str]:
    if not (isinstance(cls, type) and issubclass(cls, Provider)):
        yield "it is not a subclass of nexus_gateway.provider.Provider"
        return
    yield from version_error(cls)
    if not (isinstance(cls.title, str) and cls.title):
        yield "its `title` is not set"
    for attribute in ("base_url", "default_model"):
        if not isinstance(getattr(cls, attribute), str):
            yield f"its `{attribute}` is not a string"
    if not isinstance(cls.stream_usage, bool):
        yield "its `stream_usage` is neither True nor False"
    adaptations = cls.adaptations
    if not (isinstance(adaptations, tuple) and all(isinstance(a, Adaptation) for a in adaptations)):
        yield "its `adaptations` is not a tuple of adaptations; one alone needs a trailing comma"
    yield from _model_errors(cls)
    yield from _endpoint_errors(cls)
    for name in cls.options:
        if not _OPTION.fullmatch(name) or name in _TAKEN_OPTIONS or name.startswith("KEY_"):
            yield f"its option {name!r} is reserved, or contains more than A-Z, 0-9 and _"
    if missing := getattr(cls, "__abstractmethods__", None):
        yield f"it does not define {', '.join(sorted(missing))}"


def _model_errors(cls: type[Provider]) -> Iterator[str]:
    successors = cls.successors
    if not isinstance(successors, tuple | list) or not all(isinstance(s, str) for s in successors):
        yield "its `successors` are not a tuple of strings; a tuple of one needs a trailing comma"
    if not isinstance(cls.models, tuple | list):
        yield "its `models` is not a tuple; a tuple of one needs a trailing comma"
        return
    for model in cls.models:
        if not isinstance(model, Model):
            yield "its `models` are not all of the type Model"
        elif model.kind not in KINDS:
            yield f"its model {model.id!r} has an unknown kind; known are {', '.join(KINDS)}"
        elif model.kind != CHAT and model.kind not in cls.endpoints:
            yield f"its model {model.id!r} needs {model.kind!r} in its `endpoints`"


def _endpoint_errors(cls: type[Provider]) -> Iterator[str]:
    for name, path in cls.endpoints.items():
        if name not in ENDPOINTS:
            yield f"its endpoint {name!r} is not known; known are {', '.join(ENDPOINTS)}"
        elif not path.startswith("/"):
            yield f"its endpoint {name!r} needs a path that begins with /"


PROVIDERS: PluginKind[Provider] = PluginKind(
    "provider", "nexus_gateway.providers", _provider_errors, frozenset(RESERVED)
)


def installed_over_ours() -> str | None:
    """Return what to do about a distribution whose files have the same paths as the gateway's."""
    try:
        version = metadata.version(NOT_OURS)
    except metadata.PackageNotFoundError:
        return None
    return (
        f"the distribution {NOT_OURS} {version} belongs to another project and overwrites files of "
        f"the gateway: run pip uninstall {NOT_OURS}, then install {OURS} again"
    )
