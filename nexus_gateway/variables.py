"""One provider's variables: NAME_KEY_1, NAME_MODEL, NAME_BASE_URL_2 and their like.

Each but the keys may stand for all instances (`NAME_MODEL`) or for one (`NAME_MODEL_2`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from urllib.parse import urlsplit

from nexus_gateway.registry import prefix
from nexus_gateway.secret import Secret
from nexus_gateway.settings import read_flag, read_secret

_NOTHING = Secret("")


def is_configured(env: Mapping[str, str], name: str) -> bool:
    """Tell whether a provider has a key or an address in the environment."""
    wanted = re.compile(re.escape(prefix(name)) + r"_(KEY_[1-9]\d{0,5}|API_KEY|BASE_URL(_\d+)?)")
    return any(text and wanted.fullmatch(variable) for variable, text in env.items())


def stray(env: Mapping[str, str], name: str) -> Iterator[str]:
    """Tell which variables of a provider are set to no effect: without a key, or misspelt."""
    own = prefix(name)
    near = re.compile(re.escape(own) + r"_(API_?)?KEYS?_?\d*")
    model = re.compile(re.escape(own) + r"_MODEL(_\d+)?")
    for variable, text in env.items():
        if text and near.fullmatch(variable):
            yield f"{variable} is not read; did you mean {own}_KEY_1?"
        elif text and model.fullmatch(variable):
            yield f"{variable} is set, but {name} has neither a key nor an address."


class Variables:
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
            return read_secret(self._env[variable])
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
            return read_flag(text) if text else None
        except ValueError as error:
            self._problem(self._of("IMAGES", number), error)
            return None

    def options(self, number: int, defaults: Mapping[str, str]) -> dict[str, str]:
        """Return the values of the variables that are this provider's alone."""
        return {
            name: self._text(name, number).strip() or default for name, default in defaults.items()
        }
