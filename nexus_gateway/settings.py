"""The gateway's environment variables, as one table: the fields of `Settings`.

Provider keys and models are read by `nexus_gateway.routing.pool`.
"""

from __future__ import annotations

import ipaddress
import os.path
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from functools import lru_cache
from itertools import combinations
from typing import Any
from urllib.parse import urlsplit

from nexus_gateway.errors import ConfigError
from nexus_gateway.secret import Secret

MAX_MS = 86_400_000
MAX_WORKERS = 256
OFF = "off"
MEMORY = "memory"
ENV = "env"
PROXY_VARIABLES = ("UPSTREAM_PROXY", "HTTPS_PROXY", "HTTP_PROXY", "NO_PROXY")
URL = "sqlite:///"
_YES = frozenset({"true", "1", "yes", "on"})
_NO = frozenset({"false", "0", "no", "off"})
_QUOTES = ("'", '"')
_NO_PROXY_URL = "must be the URL of an HTTP proxy such as http://proxy.example:3128"
_UNSET = Secret("")

# Parsers. Each raises ValueError with what is expected, never with the value.


def parse_bool(text: str) -> bool:
    word = text.strip().lower()
    if word not in _YES | _NO:
        raise ValueError("must be true or false")
    return word in _YES


def unquoted(text: str) -> str:
    """Return a value; ValueError if quotes were kept around it.

    Shells and `.env` files remove them, but `docker --env-file` and some consoles do not.
    """
    stripped = text.strip()
    if stripped[:1] in _QUOTES or stripped[-1:] in _QUOTES:
        raise ValueError("begins or ends with a quote; write the value without quotes")
    return text


def parse_secret(text: str) -> Secret:
    """Parse a key or token: it must be possible in a header."""
    if not text.strip():
        raise ValueError("is blank; set a value or remove it")
    if "," in unquoted(text):
        raise ValueError("contains a comma; each key or token needs a variable of its own")
    if not all("!" <= c <= "~" for c in text):
        raise ValueError(
            "contains a space, a line break or a character that no key has; "
            "look for a stray quote or line end"
        )
    return Secret(text)


def parse_file_url(text: str) -> str:
    """Parse a file's address, as SQLAlchemy writes it: `sqlite:///relative` or `…////absolute`.

    Returns the file's path; "" for `off`.
    """
    url = text.strip()
    if url.lower() == OFF:
        return ""
    path = url[len(URL) :]
    is_wrong = not path or path.endswith(("/", os.sep)) or path.startswith(":") or "?" in path
    if not url.lower().startswith(URL) or is_wrong or "\0" in path:
        raise ValueError("must be off, or sqlite:/// and the path of a file")
    return os.path.expanduser(path) if path.startswith("~/") else path


def _response_store(text: str) -> str:
    """Parse where responses are kept: `memory`, or a path as of `parse_file_url`."""
    if text.strip().lower() == MEMORY:
        return MEMORY
    try:
        path = parse_file_url(text)
    except ValueError:
        raise ValueError("must be memory, off, or sqlite:/// and the path of a file") from None
    return os.path.join(os.curdir, path) if path == MEMORY else path


def is_proxy(text: str) -> bool:
    """Return whether a text is the URL of an HTTP proxy, perhaps with a user and a password."""
    try:
        parts = urlsplit(text)
        address = parts.scheme == "http" and parts.hostname and parts.port != 0
    except ValueError:
        return False
    return bool(address and not (parts.path.strip("/") or parts.query or parts.fragment))


def _proxy_or_env(text: str) -> Secret:
    text = text.strip()
    if text.lower() == ENV:
        return Secret(ENV)
    if not is_proxy(text):
        raise ValueError(f"{_NO_PROXY_URL}, or env")
    return Secret(text)


def hosts_of(host: str) -> list[str]:
    """Return the addresses in HOST."""
    return [part.strip() for part in host.split(",")]


def is_local(host: str) -> bool:
    """Return whether all addresses in HOST are of this machine alone."""
    return all(map(is_loopback, hosts_of(host)))


def allowed_origin(host: str, cors_origin: str) -> str:
    """Return whose pages may call: CORS_ORIGIN, or if that is unset, "" for this machine's.

    Beyond loopback it is any page, as the pages' users are elsewhere.
    """
    return cors_origin or ("" if is_local(host) else "*")


@lru_cache(maxsize=1024)
def is_loopback(host: str) -> bool:
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def _secrets(text: str) -> tuple[Secret, ...]:
    return tuple(parse_secret(part.strip(" ")) for part in text.split(","))


def _number(least: int, most: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        digits = text.strip()
        if not (digits.isascii() and digits.isdigit()) or not least <= int(digits[:18]) <= most:
            raise ValueError(f"must be a whole number from {least} to {most}")
        return int(digits)

    return parse


def _one_of(*words: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text.strip().lower() not in words:
            raise ValueError(f"must be one of: {', '.join(words)}")
        return text.strip().lower()

    return parse


def _matching(pattern: str, expected: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if not re.fullmatch(pattern, text.strip()):
            raise ValueError(f"must be {expected}")
        return text.strip()

    return parse


@dataclass(frozen=True, slots=True)
class Variable:
    """An environment variable; `default` is as a user would write it, "" for none."""

    name: str
    default: str
    parse: Callable[[str], Any]  # its ValueError describes what is expected


def _variable(default: str, parse: Callable[[str], Any], unset: object = "") -> Any:
    """Declare a variable; `unset` is the field's value if there is no default."""
    value = parse(default) if default else unset
    return field(default=value, metadata={"default": default, "parse": parse})


_MS = _number(1, MAX_MS)
parse_tier = _number(1, 99)  # both are for the variables of the providers
parse_ms = _MS
_MS_OR_OFF = _number(0, MAX_MS)
_LEVEL = _one_of("debug", "info", "warning", "error")
_HOST = _matching(r"[^\s,]+(\s*,\s*[^\s,]+)*", "an address or a host name, or several with commas")
_URL = _matching(r"https?://[^\s/?#]+\S*", "a URL such as http://127.0.0.1:4318")
_ORIGIN = _matching(
    r"\*|null|https?://([a-z0-9._-]+|\[[0-9a-f:.]+\])(:[0-9]{1,5})?",
    "* or one origin such as https://chat.example.org, without a path",
)


@dataclass(frozen=True, slots=True)
class Settings:
    """The settings; each field is the variable of the same name in upper case."""

    host: str = _variable("127.0.0.1", _HOST)
    port: int = _variable("3000", _number(0, 65535))
    web_concurrency: int = _variable("1", _number(1, MAX_WORKERS))
    cors_origin: str = _variable("", _ORIGIN)
    first_token_timeout_ms: int = _variable("8000", _MS)
    idle_timeout_ms: int = _variable("30000", _MS)
    write_timeout_ms: int = _variable("60000", _MS)
    response_timeout_ms: int = _variable("120000", _MS)
    stream_timeout_ms: int = _variable("3600000", _MS_OR_OFF)
    keepalive_ms: int = _variable("0", _MS_OR_OFF)
    shutdown_timeout_ms: int = _variable("10000", _MS)
    max_attempts: int = _variable("6", _number(1, 100))
    queue_timeout_ms: int = _variable("0", _MS_OR_OFF)
    queue_limit: int = _variable("100", _number(1, 100_000))
    affinity: bool = _variable("true", parse_bool)
    hedge: bool = _variable("false", parse_bool)
    resume: bool = _variable("false", parse_bool)
    max_concurrent: int = _variable("5000", _number(0, 1_000_000))
    max_body_mb: int = _variable("20", _number(1, 1024))
    body_budget_mb: int = _variable("0", _number(0, 1 << 20))
    strict_models: bool = _variable("false", parse_bool)
    response_model: str = _variable("instance", _one_of("instance", "upstream"))
    stream_usage: bool = _variable("true", parse_bool)
    direct_path: bool = _variable("true", parse_bool)
    upstream_proxy: Secret = _variable("", _proxy_or_env, unset=_UNSET)  # noqa: RUF009 - it returns a field
    https_proxy: Secret = _variable("", Secret, unset=_UNSET)  # noqa: RUF009 - it returns a field
    http_proxy: Secret = _variable("", Secret, unset=_UNSET)  # noqa: RUF009 - it returns a field
    no_proxy: str = _variable("", str.strip)
    metrics: bool = _variable("true", parse_bool)
    gateway_keys: tuple[Secret, ...] = _variable("", _secrets, unset=())
    admin_token: Secret = _variable("", parse_secret, unset=_UNSET)  # noqa: RUF009 - it returns a field
    viewer_token: Secret = _variable("", parse_secret, unset=_UNSET)  # noqa: RUF009 - it returns a field
    ledger: str = _variable("", parse_file_url)
    response_store: str = _variable("", _response_store, unset=MEMORY)
    response_store_mb: int = _variable("64", _number(1, 65_536))
    response_store_ttl_ms: int = _variable("3600000", _number(1, 30 * MAX_MS))
    log_level: str = _variable("info", _LEVEL)
    log_format: str = _variable("text", _one_of("text", "json"))
    otel_exporter_otlp_endpoint: str = _variable("", _URL)
    otel_exporter_otlp_traces_endpoint: str = _variable("", _URL)

    @property
    def is_local(self) -> bool:
        """Whether the gateway listens to this machine alone."""
        return is_local(self.host)

    @property
    def allowed_origin(self) -> str:
        """As `allowed_origin`."""
        return allowed_origin(self.host, self.cors_origin)

    @property
    def traces(self) -> bool:
        """Whether there is a collector for traces."""
        return bool(self.otel_exporter_otlp_endpoint or self.otel_exporter_otlp_traces_endpoint)

    @property
    def proxies(self) -> Mapping[str, Secret]:
        """The proxies for upstreams, by the scheme of an upstream's URL."""
        proxy = self.upstream_proxy
        if proxy.reveal() == ENV:
            return {"https": self.https_proxy, "http": self.http_proxy}
        return {"https": proxy, "http": proxy} if proxy else {}

    @property
    def proxy_secrets(self) -> list[Secret]:
        """The passwords in the proxies' URLs."""
        passwords = (urlsplit(proxy.reveal()).password for proxy in self.proxies.values())
        return [Secret(password) for password in passwords if password]

    @property
    def secrets(self) -> tuple[Secret, ...]:
        """All credentials; a token that is not set is empty."""
        return (self.admin_token, self.viewer_token, *self.gateway_keys)

    @classmethod
    def from_env(cls, env: Mapping[str, str]) -> Settings:
        """Parse the settings; an empty variable counts as unset. ConfigError names wrong ones.

        The names of proxies may be in lower case, as other programs read them.
        """
        values: dict[str, Any] = {}
        problems: list[str] = []
        for variable in VARIABLES:
            text = env.get(variable.name, "")
            if variable.name in PROXY_VARIABLES:
                text = text or env.get(variable.name.lower(), "")
            if text:
                try:
                    values[variable.name.lower()] = variable.parse(unquoted(text))
                except ValueError as error:
                    problems.append(f"{variable.name} {error}.")
        settings = cls(**values)
        problems += [*_duplicate_secrets(settings), *_wrong_proxies(settings)]
        if settings.ledger and settings.ledger == settings.response_store:
            problems.append("LEDGER and RESPONSE_STORE name the same file; each needs its own.")
        if problems:
            raise ConfigError(problems)
        return settings


VARIABLES = tuple(Variable(name=f.name.upper(), **f.metadata) for f in fields(Settings))


def _duplicate_secrets(settings: Settings) -> Iterator[str]:
    """Find equal credentials: each would carry the rights of the other."""
    secrets = {
        "VIEWER_TOKEN": (settings.viewer_token,),
        "ADMIN_TOKEN": (settings.admin_token,),
        "GATEWAY_KEYS": settings.gateway_keys,
    }
    values = {name: {one.reveal() for one in group if one} for name, group in secrets.items()}
    for one, other in combinations(values, 2):
        if values[one] & values[other]:
            yield f"{one} and {other} have the same value; each needs its own."


def _wrong_proxies(settings: Settings) -> Iterator[str]:
    """Check the variables of other programs, if they are used."""
    for scheme, proxy in settings.proxies.items():
        if settings.upstream_proxy.reveal() == ENV and proxy and not is_proxy(proxy.reveal()):
            yield f"{scheme.upper()}_PROXY {_NO_PROXY_URL}."


def default_file_url(name: str, env: Mapping[str, str], platform: str) -> str:
    """Return the address of a file in the user's state folder, such as `ledger`."""
    home = os.path.expanduser("~")
    if home == "~":  # a user without a home: fail at the root, not silently in the current folder
        home = os.sep
    folder = env.get("XDG_STATE_HOME", "")
    if platform == "win32":
        folder = env.get("LOCALAPPDATA") or os.path.join(home, "AppData", "Local")
    elif platform == "darwin":
        folder = os.path.join(home, "Library", "Application Support")
    elif not os.path.isabs(folder):  # to be ignored (XDG Base Directory Specification)
        folder = os.path.join(home, ".local", "state")
    return URL + os.path.join(folder, "nexus-gateway", f"{name}.sqlite3")
