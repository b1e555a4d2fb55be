from __future__ import annotations

import argparse
import os
import sys

from nexus_gateway.errors import ConfigError
from nexus_gateway.settings import default_ledger_url

DEFAULT_ENV_FILE = ".env"

WRONG_SETTINGS = 2


def environment(file: str) -> dict[str, str]:
    """Return the settings of a .env file under those of the real environment.

    Raises:
        ConfigError: the file is not text, or was asked for and is not there.
    """
    from dotenv import dotenv_values

    if file != DEFAULT_ENV_FILE and not os.path.isfile(file):
        raise ConfigError([f"--env-file: there is no file {file!r}."])
    try:
        # Taken literally: a key may hold a dollar sign.
        found = dotenv_values(file, interpolate=False)
    except (OSError, UnicodeDecodeError):
        raise ConfigError([f"{file!r} cannot be read as text."]) from None
    written = {k: v for k, v in found.items() if v is not None}
    return {**written, **{k: v for k, v in os.environ.items() if v or k not in written}}


def serve_environment(arguments: argparse.Namespace) -> dict[str, str]:
    """Return the settings for `serve`: its flags win over the environment.

    Raises:
        ConfigError: as `environment`.
    """
    flags = {
        "HOST": arguments.host,
        "PORT": arguments.port,
        "WEB_CONCURRENCY": arguments.workers,
        "LOG_LEVEL": arguments.log_level,
    }
    given = {name: value for name, value in flags.items() if value is not None}
    return {**with_ledger(environment(arguments.env_file)), **given}


def with_ledger(env: dict[str, str]) -> dict[str, str]:
    """Return the settings, and where the ledger is kept if they do not say."""
    return {**env, "LEDGER": env.get("LEDGER") or default_ledger_url(env, sys.platform)}
