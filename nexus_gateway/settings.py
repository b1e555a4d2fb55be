"""What the owner sets: a frozen dataclass from a mapping, all problems told at once.

Where the ledger lies: what LEDGER says, and where it is when nothing is said.
"""

from __future__ import annotations

import os.path
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from nexus_gateway.errors import ConfigError
from nexus_gateway.secret import Secret

OFF = "off"
URL = "sqlite:///"


def parse_ledger_url(text: str) -> str:
    """Read a place, written as SQLAlchemy does: `sqlite:///relative` or `sqlite:////absolute`.

    Returns:
        The file's path; "" for no ledger at all.

    Raises:
        ValueError: it is neither `off` nor such an address.
    """
    place = text.strip()
    if place.lower() == OFF:
        return ""
    path = place[len(URL) :]
    wrong = not path or path.endswith(("/", os.sep)) or path.startswith(":") or "?" in path
    if not place.lower().startswith(URL) or wrong or "\0" in path:
        raise ValueError("must be off, or sqlite:/// and the path of a file")
    # Nobody means a folder that is called so.
    return os.path.expanduser(path) if path.startswith("~/") else path


def default_ledger_url(env: Mapping[str, str], platform: str) -> str:
    """Return where the ledger is kept when nobody says, as LEDGER would say it.

    Args:
        env: the environment.
        platform: as `sys.platform`.
    """
    folder = _state_folder(env, platform)
    return URL + os.path.join(folder, "nexus-gateway", "ledger.sqlite3")


def _state_folder(env: Mapping[str, str], platform: str) -> str:
    """Return where this user's programs keep what they remember."""
    home = os.path.expanduser("~")
    if home == "~":  # nobody in particular: not the current folder, and said at the start
        home = os.sep
    if platform == "win32":
        return env.get("LOCALAPPDATA") or os.path.join(home, "AppData", "Local")
    if platform == "darwin":
        return os.path.join(home, "Library", "Application Support")
    chosen = env.get("XDG_STATE_HOME", "")
    # A relative one is to be ignored (XDG Base Directory Specification).
    return chosen if os.path.isabs(chosen) else os.path.join(home, ".local", "state")


_ORIGIN = re.compile(r"https?://([a-z0-9._-]+|\[[0-9a-f:.]+\])(:[0-9]{1,5})?")
_URL = re.compile(r"https?://[^\s/?#]+\S*")
_YES = frozenset({"true", "1", "yes", "on"})
_NO = frozenset({"false", "0", "no", "off"})
MAX_MS = 86_400_000
MAX_WORKERS = 256


class _Wrong(ValueError):
    """A value that cannot be used; the text says what is expected, never the value."""


def _number(least: int, most: int) -> Callable[[str], int]:
    def read(text: str) -> int:
        digits = text.strip()
        if not (digits.isascii() and digits.isdigit()) or not least <= int(digits[:18]) <= most:
            raise _Wrong(f"must be a whole number from {least} to {most}")
        return int(digits)

    return read


def _one_of(*words: str) -> Callable[[str], str]:
    def read(text: str) -> str:
        if text.strip().lower() not in words:
            raise _Wrong(f"must be one of: {', '.join(words)}")
        return text.strip().lower()

    return read


def parse_bool(text: str) -> bool:
    """Read true or false.

    Raises:
        ValueError: it is neither.
    """
    word = text.strip().lower()
    if word not in _YES | _NO:
        raise _Wrong("must be true or false")
    return word in _YES


def _origin(text: str) -> str:
    if text.strip() != "*" and not _ORIGIN.fullmatch(text.strip()):
        raise _Wrong("must be * or one origin such as https://chat.example.org, without a path")
    return text.strip()


def _host(text: str) -> str:
    if not text.strip() or any(c.isspace() for c in text.strip()):
        raise _Wrong("must be an address or a host name")
    return text.strip()


def _url(text: str) -> str:
    if not _URL.fullmatch(text.strip()):
        raise _Wrong("must be a URL such as http://127.0.0.1:4318")
    return text.strip()


def parse_secret(text: str) -> Secret:
    """Read a key.

    Raises:
        ValueError: it is blank, or holds what cannot stand in a header.
    """
    if not text.strip():
        raise _Wrong("is blank; give a value or remove it")
    if not all("!" <= c <= "~" for c in text):
        raise _Wrong(
            "holds a space, a line break or a character that no key has; "
            "look for a stray quote or line end"
        )
    return Secret(text)


def _secrets(text: str) -> tuple[Secret, ...]:
    return tuple(parse_secret(part.strip(" ")) for part in text.split(","))


@dataclass(frozen=True, slots=True)
class Variable:
    """An environment variable.

    Args:
        name: as in the environment.
        default: as a user would write it, "" for none.
        help: one line.
        read: turns the text into the value; ValueError says what is expected.
    """

    name: str
    default: str
    help: str
    read: Callable[[str], Any]


_MS = _number(1, MAX_MS)
VARIABLES: tuple[Variable, ...] = (
    Variable("HOST", "127.0.0.1", "Address to listen on; 0.0.0.0 for all.", _host),
    Variable("PORT", "3000", "Port to listen on; 0 for any free one.", _number(0, 65535)),
    Variable("WEB_CONCURRENCY", "1", "How many worker processes serve.", _number(1, MAX_WORKERS)),
    Variable("CORS_ORIGIN", "*", "Origin whose pages may read answers, or * for all.", _origin),
    Variable("FIRST_TOKEN_TIMEOUT_MS", "8000", "Longest wait for a stream's first content.", _MS),
    Variable("IDLE_TIMEOUT_MS", "30000", "Longest silence in a stream or a caller's body.", _MS),
    Variable("WRITE_TIMEOUT_MS", "60000", "How long a caller may take nothing of an answer.", _MS),
    Variable(
        "RESPONSE_TIMEOUT_MS",
        "120000",
        "Longest wait for an answer to begin, all attempts together; for a whole answer, to end.",
        _MS,
    ),
    Variable(
        "KEEPALIVE_MS",
        "0",
        "Send comments every so often until a stream begins; 0 for never.",
        _number(0, MAX_MS),
    ),
    Variable("SHUTDOWN_TIMEOUT_MS", "10000", "How long streams may go on after SIGTERM.", _MS),
    Variable("MAX_ATTEMPTS", "6", "Most attempts for one request.", _number(1, 100)),
    Variable(
        "QUEUE_TIMEOUT_MS",
        "0",
        "Longest wait for a rate limited or broken instance to return; 0 refuses at once.",
        _number(0, MAX_MS),
    ),
    Variable("QUEUE_LIMIT", "100", "Most requests that wait so.", _number(1, 100_000)),
    Variable(
        "HEDGE",
        "false",
        "Ask a second instance where a stream's first content is unusually late.",
        parse_bool,
    ),
    Variable(
        "RESUME",
        "false",
        "Let another instance go on with a streamed text that breaks in its midst.",
        parse_bool,
    ),
    Variable(
        "MAX_CONCURRENT",
        "5000",
        "Most requests that one worker serves at once; 0 for no limit.",
        _number(0, 1_000_000),
    ),
    Variable("MAX_BODY_MB", "20", "Largest body that is taken.", _number(1, 1024)),
    Variable("STRICT_MODELS", "false", "Answer 404 to unknown models.", parse_bool),
    Variable(
        "RESPONSE_MODEL",
        "instance",
        "What `model` says in an answer: instance or upstream.",
        _one_of("instance", "upstream"),
    ),
    Variable(
        "STREAM_USAGE",
        "true",
        "Ask upstreams for a stream's usage also where the caller does not.",
        parse_bool,
    ),
    Variable("DIRECT_PATH", "true", "Carry bytes past aiohttp's own streams.", parse_bool),
    Variable("METRICS", "true", "Count for GET /metrics (extra `metrics`).", parse_bool),
    Variable("GATEWAY_KEYS", "", "Keys that callers need, separated by commas.", _secrets),
    Variable("ADMIN_TOKEN", "", "Token that admin calls need.", parse_secret),
    Variable(
        "VIEWER_TOKEN",
        "",
        "Token that opens the admin calls that only look, and nothing else.",
        parse_secret,
    ),
    Variable(
        "LEDGER",
        "",
        "Where what was used is noted: sqlite:///path or off; a file of the user's where unset.",
        parse_ledger_url,
    ),
    Variable(
        "LOG_LEVEL",
        "info",
        "debug, info, warning or error.",
        _one_of("debug", "info", "warning", "error"),
    ),
    Variable("LOG_FORMAT", "text", "text or json.", _one_of("text", "json")),
    Variable(
        "OTEL_EXPORTER_OTLP_ENDPOINT",
        "",
        "Collector that traces go to, as OTLP over HTTP; further OTEL_ variables hold as usual.",
        _url,
    ),
    Variable("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "", "The same with its whole path.", _url),
)

_NO_TOKEN = Secret("")


@dataclass(frozen=True, slots=True)
class Settings:
    """The settings; each field is the variable of its name, and VARIABLES says what it does."""

    host: str = "127.0.0.1"
    port: int = 3000
    web_concurrency: int = 1
    cors_origin: str = "*"
    first_token_timeout_ms: int = 8000
    idle_timeout_ms: int = 30000
    write_timeout_ms: int = 60000
    response_timeout_ms: int = 120000
    keepalive_ms: int = 0
    shutdown_timeout_ms: int = 10000
    max_attempts: int = 6
    queue_timeout_ms: int = 0
    queue_limit: int = 100
    hedge: bool = False
    resume: bool = False
    max_concurrent: int = 5000
    max_body_mb: int = 20
    strict_models: bool = False
    response_model: str = "instance"
    stream_usage: bool = True
    direct_path: bool = True
    metrics: bool = True
    gateway_keys: tuple[Secret, ...] = ()
    admin_token: Secret = _NO_TOKEN
    viewer_token: Secret = _NO_TOKEN
    ledger: str = ""
    log_level: str = "info"
    log_format: str = "text"
    otel_exporter_otlp_endpoint: str = ""
    otel_exporter_otlp_traces_endpoint: str = ""

    @property
    def traces(self) -> bool:
        """Whether there is a collector for traces."""
        return bool(self.otel_exporter_otlp_endpoint or self.otel_exporter_otlp_traces_endpoint)

    @property
    def secrets(self) -> tuple[Secret, ...]:
        """All that opens a door; a token that is not set is empty."""
        return (self.admin_token, self.viewer_token, *self.gateway_keys)

    @classmethod
    def from_env(cls, env: Mapping[str, str]) -> Settings:
        """Read the settings; an empty variable is an unset one.

        Raises:
            ConfigError: some are wrong; each is named in one line, its value never shown.
        """
        values: dict[str, Any] = {}
        problems: list[str] = []
        for variable in VARIABLES:
            text = env.get(variable.name, "")
            if text:
                try:
                    values[variable.name.lower()] = variable.read(text)
                except ValueError as error:
                    problems.append(f"{variable.name} {error}.")
        settings = cls(**values)
        problems += _duplicate_secrets(settings)
        if problems:
            raise ConfigError(problems)
        return settings


def _duplicate_secrets(settings: Settings) -> Iterator[str]:
    """Tell which credentials are the same: who holds one would have the other's rights as well."""
    held = {
        "VIEWER_TOKEN": (settings.viewer_token,),
        "ADMIN_TOKEN": (settings.admin_token,),
        "GATEWAY_KEYS": settings.gateway_keys,
    }
    known = {name: {one.reveal() for one in secrets if one} for name, secrets in held.items()}
    for one, other in combinations(known, 2):
        if known[one] & known[other]:
            yield f"{one} and {other} hold the same value; each needs one of its own."
