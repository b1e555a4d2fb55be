"""The installed providers: entry points of the group `nexus_gateway.providers`.

A plugin that cannot be used is named with its reason and left out: it never stops the gateway.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import metadata
from importlib.metadata import EntryPoint

from nexus_gateway.provider import API_VERSION, InProcess, Model, Provider
from nexus_gateway.settings import Fault, read_url

GROUP = "nexus_gateway.providers"
OWN_DISTRIBUTION = "nexus-gateway"
ANY_NAMES = ("auto", "nexus")  # a caller's words for "any model": no provider may take them
# RESPONSE_MODEL is a setting of the gateway: nobody may own the prefix RESPONSE.
_RESERVED = (*ANY_NAMES, "response")
_NAME = re.compile(r"[a-z0-9_-]+")
_LONGEST_REASON = 200


@dataclass(slots=True)
class Plugin:
    """A provider that is installed and fit for use.

    Args:
        name: the entry point's name.
        cls: the provider's class.
        distribution: the installed package that it came in.
        version: of that package.
        entry_point: where the class is, as `module:Class`.
    """

    name: str
    cls: type[Provider]
    distribution: str
    version: str
    entry_point: str

    @property
    def prefix(self) -> str:
        """The prefix of its variables: ACME_X for acme-x."""
        return _prefix(self.name)


@dataclass(slots=True)
class PluginProblem:
    """A plugin that was left out, and why."""

    name: str
    distribution: str
    version: str
    entry_point: str
    reason: str


def _prefix(name: str) -> str:
    return name.replace("-", "_").upper()


def _owner(entry: EntryPoint) -> tuple[str, str]:
    """Return name and version of the distribution that an entry point came in."""
    if entry.dist is None:
        return "", ""
    return re.sub(r"[-_.]+", "-", entry.dist.name or "").lower(), entry.dist.version or ""


def _rank(entry: EntryPoint) -> tuple[bool, str, str, str]:
    """Order entry points: our own first, then by distribution; the first of a name has it."""
    distribution, _ = _owner(entry)
    return distribution != OWN_DISTRIBUTION, distribution, entry.name, entry.value


def _problem(entry: EntryPoint, reason: str) -> PluginProblem:
    return PluginProblem(entry.name, *_owner(entry), entry.value, reason)


def told(error: BaseException) -> str:
    """Tell an exception of foreign code in one clean line."""
    try:
        first = next(iter(str(error).splitlines()), "")
    except Exception:
        first = ""
    text = f"{type(error).__name__}: {first}" if first else type(error).__name__
    return "".join(c if c.isprintable() else "?" for c in text)[:_LONGEST_REASON]


def discover(
    entry_points: Iterable[EntryPoint] | None = None,
) -> tuple[list[Plugin], list[PluginProblem]]:
    """Load the installed providers, each on its own.

    Args:
        entry_points: what to load; None: what is installed in the group.

    Returns:
        The ones fit for use, our own first, and the ones left out.
    """
    if entry_points is None:
        entry_points = metadata.entry_points(group=GROUP)
    plugins: list[Plugin] = []
    problems: list[PluginProblem] = []
    names: dict[str, EntryPoint] = {}
    titles: dict[str, Plugin] = {}
    for entry in sorted(entry_points, key=_rank):
        if misnamed := _misnamed(entry.name):
            problems.append(_problem(entry, misnamed))
            continue
        first = names.setdefault(_prefix(entry.name), entry)
        if first is not entry:
            whose = _owner(first)[0] or first.value
            problems.append(_problem(entry, f"the name is taken by {first.name} of {whose}"))
            continue
        loaded = _load(entry)
        if isinstance(loaded, PluginProblem):
            problems.append(loaded)
        elif titles.setdefault(loaded.cls.title, loaded) is not loaded:
            taken_by = titles[loaded.cls.title].name
            problems.append(_problem(entry, f"its title is taken by the provider {taken_by}"))
        else:
            plugins.append(loaded)
    return plugins, problems


def _misnamed(name: str) -> str | None:
    """Return why no provider may have a name, or None."""
    if not _NAME.fullmatch(name):
        return "the name may hold only a-z, 0-9, - and _"
    return "the name is reserved" if name in _RESERVED else None


def _load(entry: EntryPoint) -> Plugin | PluginProblem:
    """Load one entry point; whatever foreign code does on the way is its own problem."""
    try:
        cls = entry.load()
        reason = _unfit(cls)
    except (Exception, SystemExit) as error:
        return _problem(entry, told(error))
    return (
        _problem(entry, reason) if reason else Plugin(entry.name, cls, *_owner(entry), entry.value)
    )


def _unfit(cls: object) -> str | None:
    """Return why a class cannot be a provider here, or None."""
    if not (isinstance(cls, type) and issubclass(cls, Provider)):
        return "it is not a subclass of Provider"
    if cls.api_version != API_VERSION:
        return f"its api_version is not {API_VERSION}, which this gateway speaks"
    needed = ["title", "default_model"] + ([] if issubclass(cls, InProcess) else ["base_url"])
    for name in needed:
        value = getattr(cls, name)
        if not isinstance(value, str) or not value.strip() or not value.isprintable():
            return f"it has no {name}"
    if not all(isinstance(model, Model) for model in cls.models):
        return "its models are not all of the type Model"
    if "base_url" in needed:
        try:
            read_url(cls.base_url)
        except Fault as fault:
            return f"its base_url {fault}"
    return None
