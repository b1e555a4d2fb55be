"""From plugins and settings to the pool of instances."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib import metadata

from nexus_gateway.errors import ConfigError
from nexus_gateway.instance import Instance
from nexus_gateway.provider import Account, InProcess, Provider
from nexus_gateway.registry import PROVIDERS, Plugin, PluginProblem, discover
from nexus_gateway.variables import Variables, is_configured, stray

DEMO = "demo"


@dataclass(slots=True)
class Pool:
    """The instances, and what was found on the way to them.

    Args:
        instances: who can be scheduled.
        plugins: the providers that are loaded.
        idle: the names of providers that are installed and have neither key nor address.
        problems: the plugins that were left out.
        warnings: what looks like a mistake in the settings; no values.
    """

    instances: list[Instance] = field(default_factory=list)
    plugins: list[Plugin[Provider]] = field(default_factory=list)
    idle: list[str] = field(default_factory=list)
    problems: list[PluginProblem] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def instance(self, name: str) -> Instance | None:
        """Return the instance of a name."""
        return next((i for i in self.instances if i.name == name), None)

    def succeed(self, new: Pool) -> Succession:
        """Become a pool that was read anew, in which whoever stays is the same object.

        Who stays has the same key at the same address under the same number: health, circuit,
        rate limits and what runs are kept, and a refused key gets another chance. Who goes gets
        nothing new, and ends what runs. Another key under an old name begins anew, but as the
        operator left that name: switched on or off.
        """
        before = {_identity(instance): instance for instance in self.instances}
        by_name = {instance.name: instance for instance in self.instances}
        kept: list[str] = []
        came: list[str] = []
        instances: list[Instance] = []
        for found in new.instances:
            old = before.pop(_identity(found), None)
            if old is not None:
                old.take_settings_of(found)
                old.free_key()
            elif found.name in by_name:
                marks = by_name[found.name].marks()
                found.follow({name: marks[name] for name in ("toggle",) if name in marks})
            instances.append(old or found)
            (came if old is None else kept).append(found.name)
        gone = [instance.name for instance in before.values()]
        for instance in before.values():
            instance.disable()
        self.instances, self.plugins, self.idle = instances, new.plugins, new.idle
        self.problems, self.warnings = new.problems, new.warnings
        return Succession(
            added=[name for name in came if name not in gone],
            removed=[name for name in gone if name not in came],
            replaced=[name for name in came if name in gone],
            kept=kept,
        )


@dataclass(frozen=True, slots=True)
class Succession:
    """What became of the instances, by name.

    Args:
        added: those that are new.
        removed: those that are gone.
        replaced: those with another key, or another address, than before.
        kept: those that stay.
    """

    added: list[str]
    removed: list[str]
    replaced: list[str]
    kept: list[str]

    def as_fields(self) -> dict[str, str | None]:
        """Return it as the log shows it: names; None where there are none."""
        found = {name: getattr(self, name) for name in ("added", "removed", "replaced", "kept")}
        return {name: ", ".join(names) or None for name, names in found.items()}


def _identity(instance: Instance) -> tuple[str, int, str, str]:
    account = instance.account
    return (instance.provider_name, instance.number, account.key.reveal(), account.base_url)


def build_pool(
    env: Mapping[str, str],
    clock: Callable[[], float],
    *,
    demo: bool = False,
    load_all: bool = False,
    entry_points: Iterable[metadata.EntryPoint] | None = None,
) -> Pool:
    """Make an instance of every key of every plugin.

    Args:
        env: the environment.
        clock: monotonic seconds.
        demo: serve the demo also beside other instances; alone it serves anyway.
        load_all: load also those plugins of ours that have neither key nor address.
        entry_points: the plugins to load; None for all that are installed.

    Raises:
        ConfigError: variables that cannot be used, all of them.
    """

    def wanted(name: str) -> bool:
        return load_all or name == DEMO or is_configured(env, name)

    found = discover(PROVIDERS, entry_points, wanted)
    pool = Pool(plugins=found.plugins, idle=found.idle, problems=found.problems)
    pool.warnings += [line for name in found.idle for line in stray(env, name)]
    wrong: list[str] = []
    for plugin in sorted(found.plugins, key=lambda p: p.name == DEMO):
        if plugin.name != DEMO or demo or not pool.instances:
            variables = Variables(env, plugin.name, wrong, pool.warnings)
            try:
                pool.instances += _instances(plugin, variables, clock)
            except _Unmade as error:
                found.leave_out(PROVIDERS, plugin, str(error))
    if wrong:
        raise ConfigError(list(dict.fromkeys(wrong)))
    return pool


class _Unmade(Exception):
    """Why a plugin has no provider object."""


def _instances(
    plugin: Plugin[Provider], variables: Variables, clock: Callable[[], float]
) -> list[Instance]:
    """Make the instances of one plugin."""
    cls = plugin.cls
    named = dict(_named(cls, variables))
    if not named:
        return []
    try:
        provider = cls()
    except (Exception, SystemExit) as error:
        raise _Unmade(f"it could not be made: {type(error).__name__}") from error
    return [
        Instance(
            provider_name=plugin.name,
            provider=provider,
            account=account,
            number=number,
            model=variables.model(number, cls.default_model),
            clock=clock,
            takes_images=variables.takes_images(number),
            origin=plugin.origin,
        )
        for number, account in _accounts(cls, named, variables)
    ]


def _named(cls: type[Provider], variables: Variables) -> Iterator[tuple[int, str | None]]:
    """Give the numbers of a provider's instances, each with the variable of its key, if any."""
    keys = variables.key_names()
    if cls.needs_key:
        yield from keys.items()
        if not keys and not cls.base_url:
            variables.warn_of_addresses()
        return
    has_address = bool(cls.base_url) or issubclass(cls, InProcess)
    for number in sorted({*keys, *variables.address_numbers(), *([1] if has_address else [])}):
        yield number, keys.get(number)


def _accounts(
    cls: type[Provider], named: Mapping[int, str | None], variables: Variables
) -> Iterator[tuple[int, Account]]:
    """Give the accounts by number; the same key at the same address is used once."""
    needed = not issubclass(cls, InProcess)
    seen: dict[tuple[str, str], str | None] = {}
    for number, variable in named.items():
        key = variables.key(variable)
        base_url = variables.base_url(number, cls.base_url, needed=needed)
        if key is None:
            continue
        twin = (key.reveal(), base_url)
        if twin in seen and variable:
            variables.warn(f"{variable} is the same key as {seen[twin]}; it is used once.")
            continue
        seen[twin] = variable
        yield number, Account(key, base_url, variables.options(number, cls.options))
