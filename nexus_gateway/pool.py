"""From plugins and settings to the pool of instances."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from importlib import metadata
from urllib.parse import urlsplit

from nexus_gateway.errors import ConfigError
from nexus_gateway.instance import Instance
from nexus_gateway.registry import Plugin, PluginProblem, discover, prefix
from nexus_gateway.secret import Secret
from nexus_gateway.settings import read_flag, read_secret

DEMO = "demo"


@dataclass(slots=True)
class Pool:
    """The instances, and what was found on the way to them.

    Args:
        instances: who can be scheduled.
        plugins: the providers that are installed.
        problems: the plugins that were left out.
        warnings: what looks like a mistake in the settings; no values.
    """

    instances: list[Instance] = field(default_factory=list)
    plugins: list[Plugin] = field(default_factory=list)
    problems: list[PluginProblem] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def instance(self, name: str) -> Instance | None:
        """Return the instance of a name."""
        return next((i for i in self.instances if i.name == name), None)


class _Environment:
    """Reads one provider's variables, and gathers what is wrong with them."""

    def __init__(self, env: Mapping[str, str], name: str, problems: list[str]) -> None:
        self._env = env
        self._prefix = prefix(name)
        self._problems = problems

    def get(self, suffix: str) -> str:
        return self._env.get(f"{self._prefix}_{suffix}", "")

    def problem(self, variable: str, text: object) -> None:
        self._problems.append(f"{variable} {text}.")

    def keys(self, warnings: list[str]) -> dict[int, Secret]:
        """Return the keys by number: NAME_KEY_n, and NAME_API_KEY as the first."""
        numbered = re.compile(re.escape(self._prefix) + r"_KEY_([1-9]\d{0,5})")
        near = re.compile(re.escape(self._prefix) + r"_(API_)?KEYS?_?\d*")
        named: dict[int, str] = {}
        for variable, text in self._env.items():
            if match := numbered.fullmatch(variable):
                named |= {int(match[1]): variable} if text else {}
            elif text and near.fullmatch(variable) and variable != f"{self._prefix}_API_KEY":
                warnings.append(f"{variable} is not read; did you mean {self._prefix}_KEY_1?")
        if self.get("API_KEY"):
            if 1 in named and self.get("API_KEY") != self.get("KEY_1"):
                warnings.append(f"{self._prefix}_API_KEY is not used: {named[1]} is set as well.")
            named.setdefault(1, f"{self._prefix}_API_KEY")
        return self._unique({n: named[n] for n in sorted(named)}, warnings)

    def _unique(self, named: dict[int, str], warnings: list[str]) -> dict[int, Secret]:
        keys: dict[int, Secret] = {}
        seen: dict[str, str] = {}
        for number, variable in named.items():
            text = self._env[variable]
            if text in seen:
                warnings.append(f"{variable} is the same key as {seen[text]}; it is used once.")
                continue
            seen[text] = variable
            try:
                keys[number] = read_secret(text)
            except ValueError as error:
                self.problem(variable, error)
        return keys

    def base_url(self, default: str) -> str:
        """Return where the API is, without a trailing slash."""
        text = self.get("BASE_URL").strip() or default
        try:
            parts = urlsplit(text)
            fine = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
        except ValueError:
            fine = False
        if text and (not fine or "@" in parts.netloc or parts.query or parts.fragment):
            self.problem(
                f"{self._prefix}_BASE_URL",
                "must be an http or https URL without user, query and fragment",
            )
        return text.rstrip("/")

    def takes_images(self) -> bool | None:
        """Return what NAME_IMAGES says, None when it says nothing."""
        try:
            return read_flag(self.get("IMAGES")) if self.get("IMAGES") else None
        except ValueError as error:
            self.problem(f"{self._prefix}_IMAGES", error)
            return None


def build_pool(
    env: Mapping[str, str],
    clock: Callable[[], float],
    *,
    demo: bool = False,
    entry_points: Iterable[metadata.EntryPoint] | None = None,
) -> Pool:
    """Make an instance of every key of every plugin.

    Args:
        env: the environment.
        clock: monotonic seconds.
        demo: serve the demo also beside other instances; alone it serves anyway.
        entry_points: the plugins to load; None for all that are installed.

    Raises:
        ConfigError: variables that cannot be used, all of them.
    """
    plugins, problems = discover(entry_points)
    pool = Pool(plugins=plugins, problems=problems)
    wrong: list[str] = []
    for plugin in sorted(plugins, key=lambda p: p.name == DEMO):
        if plugin.name != DEMO or demo or not pool.instances:
            variables = _Environment(env, plugin.name, wrong)
            pool.instances += _instances(plugin, variables, clock, pool)
    if wrong:
        raise ConfigError(wrong)
    return pool


def _instances(
    plugin: Plugin, variables: _Environment, clock: Callable[[], float], pool: Pool
) -> list[Instance]:
    """Make the instances of one plugin; one that cannot even be made is a problem of its own."""
    cls = plugin.cls
    keys = variables.keys(pool.warnings) if cls.needs_key else {1: Secret("")}
    if not keys:
        return []
    try:
        provider = cls()
    except (Exception, SystemExit) as error:
        about = (plugin.name, plugin.distribution, plugin.version, plugin.entry_point)
        reason = f"it could not be made: {type(error).__name__}"
        pool.problems.append(PluginProblem(*about, reason))
        pool.plugins.remove(plugin)
        return []
    base_url, takes_images = variables.base_url(cls.base_url), variables.takes_images()
    return [
        Instance(
            provider_name=plugin.name,
            provider=provider,
            key=key,
            number=number,
            model=variables.get("MODEL").strip() or cls.default_model,
            base_url=base_url,
            clock=clock,
            takes_images=takes_images,
        )
        for number, key in keys.items()
    ]
