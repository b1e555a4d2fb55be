"""The process's environment: settings from `.env` and os.environ, and its own command line."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from nexus_gateway.errors import ConfigError
from nexus_gateway.settings import URL, default_file_url

DEFAULT_ENV_FILE = ".env"
WRONG_SETTINGS = 2


def environment(file: str) -> dict[str, str]:
    """Return the variables of an env file, overridden by the real environment.

    Raises:
        ConfigError: the file is not text, or was named and does not exist.
    """
    from dotenv import dotenv_values

    if file != DEFAULT_ENV_FILE and not os.path.isfile(file):
        raise ConfigError([f"--env-file: there is no file {file!r}."])
    try:
        # Without interpolation: a key may contain a dollar sign.
        values = dotenv_values(file, interpolate=False)
    except (OSError, UnicodeDecodeError):
        raise ConfigError([f"{file!r} cannot be read as text."]) from None
    written = {name: value for name, value in values.items() if value is not None}
    # An empty variable of the environment does not override the file.
    return {**written, **{k: v for k, v in os.environ.items() if v or k not in written}}


def serve_environment(arguments: argparse.Namespace) -> dict[str, str]:
    """Return the variables for `serve`: its options override the environment."""
    options = {
        "HOST": arguments.host,
        "PORT": arguments.port,
        "WEB_CONCURRENCY": arguments.workers,
        "LOG_LEVEL": arguments.log_level,
    }
    given = {name: value for name, value in options.items() if value is not None}
    return _with_response_store({**with_ledger(environment(arguments.env_file)), **given})


def _with_response_store(env: dict[str, str]) -> dict[str, str]:
    """Return the variables with the default of RESPONSE_STORE: several workers share a file.

    It is beside the ledger, where the gateway may write also if it has no home.
    """
    if env.get("RESPONSE_STORE") or env.get("WEB_CONCURRENCY", "").strip() in ("", "1"):
        return env
    if env["LEDGER"].startswith(URL):
        beside = Path(env["LEDGER"].removeprefix(URL)).with_name("responses.sqlite3")
        return {**env, "RESPONSE_STORE": f"{URL}{beside}"}
    return {**env, "RESPONSE_STORE": default_file_url("responses", env, sys.platform)}


def with_ledger(env: dict[str, str]) -> dict[str, str]:
    """Return the variables with the default of LEDGER, if it is not set."""
    return {**env, "LEDGER": env.get("LEDGER") or default_file_url("ledger", env, sys.platform)}


def own_command(arguments: argparse.Namespace) -> list[str]:
    """Return the command line that runs this command again."""
    if arguments.words is None:
        return [sys.executable, *sys.orig_argv[1:]]
    return [sys.executable, "-m", "nexus_gateway", *arguments.words]
