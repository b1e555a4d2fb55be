"""From plugins and settings to the pool of instances.

One provider's variables: NAME_KEY_1, NAME_MODEL, NAME_BASE_URL_2 and their like.

Each but the keys may stand for all instances (`NAME_MODEL`) or for one (`NAME_MODEL_2`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib import metadata
from urllib.parse import urlsplit

from nexus_gateway.discovery import PROVIDERS, Plugin, PluginProblem, discover, prefix
from nexus_gateway.errors import ConfigError
from nexus_gateway.provider import Account, InProcess, Provider
from nexus_gateway.routing.instance import Instance
from nexus_gateway.secret import Secret
from nexus_gateway.settings import parse_bool, parse_secret

_NOTHING = Secret("")


def is_configured(env: Mapping[str, str], name: str) -> bool:
    """Tell whether a provider has a key or an address in the environment."""
    wanted = re.compile(re.escape(prefix(name)) + r"_(KEY_[1-9]\d{0,5}|API_KEY|BASE_URL(_\d+)?)")
    return any(text and wanted.fullmatch(variable) for variable, text in env.items())


def unused_variables(env: Mapping[str, str], name: str) -> Iterator[str]:
    """Tell which variables of a provider are set to no effect: without a key, or misspelt."""
    own = prefix(name)
    near = re.compile(re.escape(own) + r"_(API_?)?KEYS?_?\d*")
    model = re.compile(re.escape(own) + r"_MODEL(_\d+)?")
    for variable, text in env.items():
        if text and near.fullmatch(variable):
            yield f"{variable} is not read; did you mean {own}_KEY_1?"
        elif text and model.fullmatch(variable):
            yield f"{variable} is set, but {name} has neither a key nor an address."


class ProviderEnv:
    """Reads one provider's variables, and gathers what is wrong with them.

    Args:
        env: the environment.
        name: the provider's name.
        problems: where lines about unusable variables go; no values.
        warnings: where lines about likely mistakes go; no values.
    """

    def __init__(
        self, env: Mapping[str, str], name: str, problems: list[str], warnings: list[str]
    ) -> None:
        self._env = env
        self._prefix = prefix(name)
        self._problems = problems
        self._warnings = warnings

    def _text(self, suffix: str, number: int) -> str:
        """Return what is set for one instance, else for all, else ""."""
        return self._env.get(self._of(suffix, number), "")

    def _of(self, suffix: str, number: int) -> str:
        """Return the name of the variable that holds a setting of one instance."""
        numbered = f"{self._prefix}_{suffix}_{number}"
        return numbered if self._env.get(numbered) else f"{self._prefix}_{suffix}"

    def _problem(self, variable: str, text: object) -> None:
        self._problems.append(f"{variable} {text}.")

    def warn(self, warning: str) -> None:
        """Note what looks like a mistake; without any value."""
        self._warnings.append(warning)

    def key_names(self) -> dict[int, str]:
        """Return the variables that hold keys: NAME_KEY_n, and NAME_API_KEY as the first."""
        numbered = re.compile(re.escape(self._prefix) + r"_KEY_([1-9]\d{0,5})")
        near = re.compile(re.escape(self._prefix) + r"_(API_)?KEYS?_?\d*")
        api_key = f"{self._prefix}_API_KEY"
        named: dict[int, str] = {}
        for variable, text in self._env.items():
            if match := numbered.fullmatch(variable):
                named |= {int(match[1]): variable} if text else {}
            elif text and near.fullmatch(variable) and variable != api_key:
                self.warn(f"{variable} is not read; did you mean {self._prefix}_KEY_1?")
        if self._env.get(api_key):
            if 1 in named and self._env[api_key] != self._env[named[1]]:
                self.warn(f"{api_key} is not used: {named[1]} is set as well.")
            named.setdefault(1, api_key)
        return dict(sorted(named.items()))

    def address_numbers(self) -> list[int]:
        """Return which instances have an address of their own; NAME_BASE_URL is the first's."""
        pattern = re.compile(re.escape(self._prefix) + r"_BASE_URL_([1-9]\d{0,5})")
        found = {int(m[1]) for v, text in self._env.items() if text and (m := pattern.fullmatch(v))}
        return sorted(found | ({1} if self._env.get(f"{self._prefix}_BASE_URL") else set()))

    def warn_of_addresses(self) -> None:
        """Note that addresses are set to no effect, as there is no key."""
        if self.address_numbers():
            self.warn(f"{self._prefix}_BASE_URL is set, but {self._prefix}_KEY_1 is not.")

    def key(self, variable: str | None) -> Secret | None:
        """Return the key that a variable holds; None where it cannot be one."""
        if variable is None:
            return _NOTHING
        try:
            return parse_secret(self._env[variable])
        except ValueError as error:
            self._problem(variable, error)
            return None

    def base_url(self, number: int, default: str, *, needed: bool) -> str:
        """Return where the API is, without a trailing slash.

        Args:
            number: of the instance.
            default: the provider's own address.
            needed: whether there must be one.
        """
        text = self._text("BASE_URL", number).strip() or default
        try:
            parts = urlsplit(text)
            fine = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
        except ValueError:
            fine = False
        if text and (not fine or "@" in parts.netloc or parts.query or parts.fragment):
            self._problem(
                self._of("BASE_URL", number),
                "must be an http or https URL without user, query and fragment",
            )
        elif needed and not text:
            self._problem(
                f"{self._prefix}_BASE_URL (or {self._prefix}_BASE_URL_{number})",
                "is not set, and this provider has no address of its own",
            )
        return text.rstrip("/")

    def model(self, number: int, default: str) -> str:
        """Return the model to ask for."""
        text = self._text("MODEL", number).strip() or default
        if not text:
            self._problem(
                f"{self._prefix}_MODEL (or {self._prefix}_MODEL_{number})",
                "is not set: name the model to ask for, this provider has no default",
            )
        return text

    def takes_images(self, number: int) -> bool | None:
        """Return what NAME_IMAGES says, None when it says nothing."""
        text = self._text("IMAGES", number)
        try:
            return parse_bool(text) if text else None
        except ValueError as error:
            self._problem(self._of("IMAGES", number), error)
            return None

    def options(self, number: int, defaults: Mapping[str, str]) -> dict[str, str]:
        """Return the values of the variables that are this provider's alone."""
        return {
            name: self._text(name, number).strip() or default for name, default in defaults.items()
        }


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

    def replace_with(self, new: Pool) -> PoolChanges:
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
                old.update_from(found)
                old.free_key()
            elif found.name in by_name:
                marks = by_name[found.name].export_state()
                found.merge_state({name: marks[name] for name in ("toggle",) if name in marks})
            instances.append(old or found)
            (came if old is None else kept).append(found.name)
        gone = [instance.name for instance in before.values()]
        for instance in before.values():
            instance.disable()
        self.instances, self.plugins, self.idle = instances, new.plugins, new.idle
        self.problems, self.warnings = new.problems, new.warnings
        return PoolChanges(
            added=[name for name in came if name not in gone],
            removed=[name for name in gone if name not in came],
            replaced=[name for name in came if name in gone],
            kept=kept,
        )


@dataclass(frozen=True, slots=True)
class PoolChanges:
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
    pool.warnings += [line for name in found.idle for line in unused_variables(env, name)]
    wrong: list[str] = []
    for plugin in sorted(found.plugins, key=lambda p: p.name == DEMO):
        if plugin.name != DEMO or demo or not pool.instances:
            variables = ProviderEnv(env, plugin.name, wrong, pool.warnings)
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
    plugin: Plugin[Provider], variables: ProviderEnv, clock: Callable[[], float]
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


def _named(cls: type[Provider], variables: ProviderEnv) -> Iterator[tuple[int, str | None]]:
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
    cls: type[Provider], named: Mapping[int, str | None], variables: ProviderEnv
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
