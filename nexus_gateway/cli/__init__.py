"""The commands. The only place that reads the process's environment and prints."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from nexus_gateway import __version__
from nexus_gateway.errors import ConfigError
from nexus_gateway.ledger_place import default_place

WRONG_SETTINGS = 2
DEFAULT_ENV_FILE = ".env"

_EPILOG = """\
settings:
  Everything else is set by environment variables, or in a file .env (the
  environment wins). Keys of a provider are NAME_KEY_1, NAME_KEY_2, ...:

    GROQ_KEY_1=gsk_...  GEMINI_KEY_1=...  nexus-gateway serve

  .env.example in the source lists every variable with its default.

examples:
  nexus-gateway serve                      serve on 127.0.0.1:3000; without a
                                           key, the built-in demo answers
  nexus-gateway serve --host 0.0.0.0       serve on all addresses (set
                                           GATEWAY_KEYS and ADMIN_TOKEN first)
  nexus-gateway serve --workers 2          serve with two processes on one port
  nexus-gateway providers                  which plugins are installed, and
                                           which keys were found
  nexus-gateway check                      does every key work?
  nexus-gateway new-provider acme          write a provider of your own, with
                                           its tests, into ./nexus-acme
"""

_SERVE = """\
Serve the OpenAI API on one port, in front of every configured provider.
SIGTERM or Ctrl-C drains: nothing new is accepted, streams may end for
SHUTDOWN_TIMEOUT_MS; a second signal ends at once. With more than one
worker SIGHUP reads .env anew and replaces the workers one by one, so that
no call is lost.
"""

_NEW_PROVIDER = """\
Write a distribution with a provider of your own, that can be installed,
tested and published. Its tests pass as they are; what has to be changed
is marked "CHANGE ME".
"""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="nexus-gateway",
        description="An AI gateway: one OpenAI-compatible door in front of many provider keys.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"nexus-gateway {__version__}")
    _add_commands(parser.add_subparsers(dest="command", required=True, metavar="COMMAND"))
    return parser


def _add_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument(
        "--env-file",
        metavar="FILE",
        default=DEFAULT_ENV_FILE,
        help="read settings from FILE",
    )
    _add_serve(commands, shared)
    commands.add_parser(
        "providers",
        parents=[shared],
        help="list the installed plugins and the keys found",
        description="List the installed provider plugins, the keys found, and what failed.",
    )
    commands.add_parser(
        "check",
        parents=[shared],
        help="send one tiny request to every instance",
        description="Send one tiny real request to every instance; exit 1 if one fails.",
    )
    _add_usage(commands, shared)
    _add_new_provider(commands)


def _add_usage(
    commands: argparse._SubParsersAction[argparse.ArgumentParser], shared: argparse.ArgumentParser
) -> None:
    from nexus_gateway.cli import usage_arguments

    usage_arguments.add(
        commands.add_parser(
            "usage",
            parents=[shared],
            help="tell what was used: requests, tokens, costs",
            description=usage_arguments.DESCRIPTION,
            epilog=usage_arguments.EPILOG,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
    )


def _add_serve(
    commands: argparse._SubParsersAction[argparse.ArgumentParser], shared: argparse.ArgumentParser
) -> None:
    serve = commands.add_parser(
        "serve",
        parents=[shared],
        help="serve",
        description=_SERVE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    serve.add_argument("--host", help="address to listen on (HOST, 127.0.0.1)")
    serve.add_argument("--port", help="port to listen on (PORT, 3000); 0 for any free one")
    serve.add_argument(
        "--workers",
        metavar="N",
        help="processes that serve (WEB_CONCURRENCY, 1); each takes memory of its own",
    )
    serve.add_argument("--demo", action="store_true", help="serve the demo provider as well")
    serve.add_argument("--log-level", metavar="LEVEL", help="debug, info, warning or error")
    serve.add_argument(
        "--reload",
        action="store_true",
        help="for development: start again when code or FILE changes (extra: dev)",
    )


def _add_new_provider(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    command = commands.add_parser(
        "new-provider",
        help="write a provider of your own",
        description=_NEW_PROVIDER,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_argument("name", metavar="NAME", help='what callers will say: "model": "NAME"')
    command.add_argument(
        "--dialect",
        choices=("openai", "custom"),
        default="openai",
        help="what it speaks: the OpenAI API (openai) or a wire format of its own (custom)",
    )
    command.add_argument("--dir", metavar="DIR", help="write into DIR (./nexus-NAME)")


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
    return {**env, "LEDGER": env.get("LEDGER") or default_place(env, sys.platform)}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        argv: the arguments; None for the process's own.

    Returns:
        The exit code: 2 for wrong settings, 1 for what failed, else 0.
    """
    arguments = _parser().parse_args(argv)
    arguments.words = None if argv is None else list(argv)
    try:
        return _run(arguments)
    except ConfigError as error:
        for problem in error.problems:
            print(f"nexus-gateway: {problem}", file=sys.stderr)
        return WRONG_SETTINGS
    except KeyboardInterrupt:
        return 130


def _run(arguments: argparse.Namespace) -> int:
    if arguments.command == "serve":
        return _serve(arguments)
    if arguments.command == "providers":
        from nexus_gateway.cli import providers

        return providers.providers(arguments)
    if arguments.command == "new-provider":
        from nexus_gateway.cli import new_provider

        return new_provider.new_provider(arguments)
    if arguments.command == "usage":
        from nexus_gateway.cli import usage

        return usage.usage(arguments)
    from nexus_gateway.cli import check

    return check.check(arguments)


def _serve(arguments: argparse.Namespace) -> int:
    from nexus_gateway.cli import workers

    if place := workers.place(os.environ):
        return workers.work(arguments, place)
    if not arguments.reload and (settings := workers.settings_of_several(arguments)):
        return workers.supervise(arguments, settings)
    from nexus_gateway.cli import serve

    return serve.reload(arguments) if arguments.reload else serve.serve(arguments)
