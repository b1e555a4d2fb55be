"""From plugins and environment variables to the pool of instances.

The variables of a provider are NAME_KEY_1, NAME_BASE_URL, NAME_MODEL or NAME_MODELS, NAME_IMAGES,
NAME_FIRST_TOKEN_TIMEOUT_MS, NAME_TIER and its own options. All but the keys apply to all instances
(`NAME_MODEL`) or to one (`NAME_MODEL_2`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from importlib import metadata
from typing import TypeVar
from urllib.parse import urlsplit

from nexus_gateway.discovery import PROVIDERS, Plugin, PluginProblem, discover, prefix
from nexus_gateway.errors import ConfigError
from nexus_gateway.provider import Account, InProcess, Provider
from nexus_gateway.routing.instance import Instance, InstanceState
from nexus_gateway.secret import Secret
from nexus_gateway.settings import parse_bool, parse_ms, parse_secret, parse_tier, unquoted

T = TypeVar("T")
DEMO = "demo"
_NO_KEY = Secret("")


def is_configured(env: Mapping[str, str], name: str) -> bool:
    wanted = re.compile(re.escape(prefix(name)) + r"_(KEY_[1-9]\d{0,5}|API_KEY|BASE_URL(_\d+)?)")
    return any(text and wanted.fullmatch(variable) for variable, text in env.items())


def unused_variables(env: Mapping[str, str], name: str) -> Iterator[str]:
    """Give a warning for each variable without effect: misspelt, or of a provider without a key."""
    start = prefix(name)
    model = re.compile(re.escape(start) + r"_MODELS?(_\d+)?")
    for variable, text in env.items():
        if text and _misspelt_key(start).fullmatch(variable):
            yield f"{variable} is not read; did you mean {start}_KEY_1?"
        elif text and model.fullmatch(variable):
            yield f"{variable} is set, but {name} has neither a key nor an address."


def _misspelt_key(start: str) -> re.Pattern[str]:
    return re.compile(re.escape(start) + r"_(API_?)?KEYS?_?\d*")


@dataclass(slots=True)
class ProviderEnv:
    """Reads the variables of one provider.

    It adds a line to `problems` for each invalid variable, and to `warnings` for each likely
    mistake; none of them contains a value.
    """

    _env: Mapping[str, str]
    prefix: str
    _problems: list[str]
    warnings: list[str]

    def _text(self, suffix: str, number: int) -> str | None:
        """Return a variable's value, "" if it is not set; None if it is invalid."""
        variable = self._variable(suffix, number)
        return self._parsed(variable, unquoted) if variable in self._env else ""

    def _variable(self, suffix: str, number: int) -> str:
        """Return the variable that applies to an instance: its own if set, else the common one."""
        numbered = f"{self.prefix}_{suffix}_{number}"
        return numbered if self._env.get(numbered) else f"{self.prefix}_{suffix}"

    def _problem(self, variable: str, text: object) -> None:
        self._problems.append(f"{variable} {text}.")

    def key_variables(self) -> dict[int, str]:
        """Return the variables that hold keys: NAME_KEY_n, and NAME_API_KEY as the first."""
        numbered = re.compile(re.escape(self.prefix) + r"_KEY_([1-9]\d{0,5})")
        misspelt = _misspelt_key(self.prefix)
        api_key = f"{self.prefix}_API_KEY"
        variables: dict[int, str] = {}
        for variable, text in self._env.items():
            if match := numbered.fullmatch(variable):
                variables |= {int(match[1]): variable} if text else {}
            elif text and misspelt.fullmatch(variable) and variable != api_key:
                self.warnings.append(f"{variable} is not read; did you mean {self.prefix}_KEY_1?")
        if self._env.get(api_key):
            if 1 in variables and self._env[api_key] != self._env[variables[1]]:
                self.warnings.append(f"{api_key} is not used: {variables[1]} is set as well.")
            variables.setdefault(1, api_key)
        return dict(sorted(variables.items()))

    def address_numbers(self) -> set[int]:
        """Return which instances have an address of their own; NAME_BASE_URL is the first's."""
        pattern = re.compile(re.escape(self.prefix) + r"_BASE_URL_([1-9]\d{0,5})")
        matches = (pattern.fullmatch(variable) for variable, text in self._env.items() if text)
        first = {1} if self._env.get(f"{self.prefix}_BASE_URL") else set()
        return first | {int(match[1]) for match in matches if match}

    def key(self, variable: str | None) -> Secret | None:
        """Return the key that a variable holds; None if it is invalid."""
        return _NO_KEY if variable is None else self._parsed(variable, parse_secret)

    def _parsed(self, variable: str, parse: Callable[[str], T]) -> T | None:
        try:
            return parse(self._env[variable])
        except ValueError as error:
            self._problem(variable, error)
            return None

    def base_url(self, number: int, default: str, *, required: bool) -> str:
        """Return the API's address, without a trailing slash."""
        written = self._text("BASE_URL", number)
        if written is None:
            return default
        text = written.strip() or default
        try:
            parts = urlsplit(text)
            valid = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
        except ValueError:
            valid = False
        if text and (not valid or "@" in parts.netloc or parts.query or parts.fragment):
            self._problem(
                self._variable("BASE_URL", number),
                "must be an http or https URL without user, query and fragment",
            )
        elif required and not text:
            self._problem(
                f"{self.prefix}_BASE_URL (or {self.prefix}_BASE_URL_{number})",
                "is not set, and this provider has no default address",
            )
        return text.rstrip("/")

    def models(self, number: int, default: str) -> list[str]:
        """Return the models of an instance, at least one.

        MODELS is a list and MODEL the same for one; what is set for this instance comes first.
        """
        suffixes = (f"MODELS_{number}", f"MODEL_{number}", "MODELS", "MODEL")
        variables = [f"{self.prefix}_{suffix}" for suffix in suffixes]
        variable = next((v for v in variables if self._env.get(v, "").strip()), "")
        written = self._parsed(variable, unquoted) if variable else default
        if written is None:
            return [default]
        is_list = variable.startswith(f"{self.prefix}_MODELS")
        models = [m.strip() for m in (written.split(",") if is_list else [written])]
        if not any(models):
            self._problem(
                f"{self.prefix}_MODEL (or {self.prefix}_MODEL_{number})",
                "is not set, and this provider has no default model",
            )
        return list(dict.fromkeys(filter(None, models))) or [""]

    def first_token_timeout_ms(self, number: int) -> int | None:
        variable = self._variable("FIRST_TOKEN_TIMEOUT_MS", number)
        return self._parsed(variable, parse_ms) if self._env.get(variable) else None

    def takes_images(self, number: int) -> bool | None:
        variable = self._variable("IMAGES", number)
        return self._parsed(variable, parse_bool) if self._env.get(variable) else None

    def tier(self, number: int) -> int:
        variable = self._variable("TIER", number)
        return (self._parsed(variable, parse_tier) or 1) if self._env.get(variable) else 1

    def options(self, number: int, defaults: Mapping[str, str]) -> dict[str, str]:
        return {
            name: (self._text(name, number) or "").strip() or default
            for name, default in defaults.items()
        }


@dataclass(slots=True)
class Pool:
    """The instances, and what discovery reported."""

    instances: list[Instance] = field(default_factory=list)
    plugins: list[Plugin[Provider]] = field(default_factory=list)
    idle: list[str] = field(default_factory=list)  # installed, but with neither key nor address
    problems: list[PluginProblem] = field(default_factory=list)  # the plugins that were left out
    warnings: list[str] = field(default_factory=list)  # likely mistakes, without values

    def instance(self, name: str) -> Instance | None:
        return next((i for i in self.instances if i.name == name), None)

    def replace_with(self, new: Pool) -> PoolChanges:
        """Take over a new pool, but keep the objects of unchanged instances.

        An instance is unchanged if it has the same key at the same address under the same number:
        it keeps health, circuit, rate limits and requests in flight, and a refused key is tried
        again. Removed instances get no new request. An instance with another key under an old
        name starts fresh, except that it stays enabled or disabled as that name was.
        """
        by_identity = {_identity(instance): instance for instance in self.instances}
        by_name = {instance.name: instance for instance in self.instances}
        kept: list[str] = []
        new_names: list[str] = []
        instances: list[Instance] = []
        for instance in new.instances:
            old = by_identity.pop(_identity(instance), None)
            if old is not None:
                old.update_from(instance)
                old.unpark()
            elif instance.name in by_name:
                marks = by_name[instance.name].export_state().marks
                toggle = {name: mark for name, mark in marks.items() if name == "toggle"}
                instance.merge_state(InstanceState(toggle))
            instances.append(old or instance)
            (new_names if old is None else kept).append(instance.name)
        old_names = [instance.name for instance in by_identity.values()]
        for instance in by_identity.values():
            instance.disable()
        self.instances, self.plugins, self.idle = instances, new.plugins, new.idle
        self.problems, self.warnings = new.problems, new.warnings
        return PoolChanges(
            added=[name for name in new_names if name not in old_names],
            removed=[name for name in old_names if name not in new_names],
            replaced=[name for name in new_names if name in old_names],
            kept=kept,
        )


@dataclass(frozen=True, slots=True)
class PoolChanges:
    """Names of instances; those replaced have another key or address than before."""

    added: list[str]
    removed: list[str]
    replaced: list[str]
    kept: list[str]

    def as_fields(self) -> dict[str, str | None]:
        return {change: ", ".join(names) or None for change, names in asdict(self).items()}


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
    """Make an instance of every key of every plugin; ConfigError lists all invalid variables.

    `demo`: serve the demo beside other instances too; without others it is served anyway.
    `load_all`: also load our plugins that have neither key nor address. `entry_points`: the plugins
    to load; None for all that are installed.
    """

    def wanted(name: str) -> bool:
        return load_all or name == DEMO or is_configured(env, name)

    discovered = discover(PROVIDERS, entry_points, wanted)
    pool = Pool(plugins=discovered.plugins, idle=discovered.idle, problems=discovered.problems)
    pool.warnings += [line for name in discovered.idle for line in unused_variables(env, name)]
    invalid: list[str] = []
    for plugin in sorted(discovered.plugins, key=lambda p: p.name == DEMO):
        if plugin.name == DEMO and pool.instances and not demo:
            continue
        variables = ProviderEnv(env, prefix(plugin.name), invalid, pool.warnings)
        keys = _key_variables(plugin.cls, variables)
        if not keys:
            continue
        try:
            provider = plugin.cls()
        except (Exception, SystemExit) as error:
            reason = f"its constructor failed: {type(error).__name__}"
            discovered.leave_out(PROVIDERS, plugin, reason)
            continue
        pool.instances += _instances(plugin, provider, keys, variables, clock)
    if invalid:
        raise ConfigError(list(dict.fromkeys(invalid)))
    return pool


def _key_variables(cls: type[Provider], variables: ProviderEnv) -> dict[int, str | None]:
    """Return the numbers of a provider's instances, each with the variable of its key, if any."""
    keys = variables.key_variables()
    if cls.needs_key:
        if not keys and not cls.base_url and variables.address_numbers():
            start = variables.prefix
            variables.warnings.append(f"{start}_BASE_URL is set, but {start}_KEY_1 is not.")
        return {**keys}
    first = {1} if cls.base_url or issubclass(cls, InProcess) else set()
    numbers = keys.keys() | variables.address_numbers() | first
    return {number: keys.get(number) for number in sorted(numbers)}


def _instances(
    plugin: Plugin[Provider],
    provider: Provider,
    keys: Mapping[int, str | None],
    variables: ProviderEnv,
    clock: Callable[[], float],
) -> Iterator[Instance]:
    """Make the instances of one plugin; the same key at the same address is one instance.

    If it is listed twice with different models, the instance has all of them.
    """
    cls = plugin.cls
    required = not issubclass(cls, InProcess)
    made: dict[tuple[str, str], Instance] = {}
    for number, variable in keys.items():
        key = variables.key(variable)
        base_url = variables.base_url(number, cls.base_url, required=required)
        if key is None:
            continue
        model, *others = variables.models(number, cls.default_model)
        same = made.get((key.reveal(), base_url)) if variable else None
        if same is not None:
            new = [m for m in (model, *others) if m not in same.models]
            same.other_models += tuple(new)
            if not new:
                variables.warnings.append(
                    f"{variable} is the same key as {keys[same.number]}; it is used once."
                )
            continue
        instance = Instance(
            provider_name=plugin.name,
            provider=provider,
            account=Account(key, base_url, variables.options(number, cls.options)),
            number=number,
            model=model,
            other_models=tuple(others),
            clock=clock,
            takes_images=variables.takes_images(number),
            first_token_timeout_ms=(
                variables.first_token_timeout_ms(number) or cls.first_token_timeout_ms
            ),
            tier=variables.tier(number),
            origin=plugin.origin,
        )
        made[(key.reveal(), base_url)] = instance
        yield instance
