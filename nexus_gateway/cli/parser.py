"""The command line: commands, options and their help."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import TypeAlias

from nexus_gateway import __version__
from nexus_gateway.cli.environment import DEFAULT_ENV_FILE
from nexus_gateway.telemetry.usage import BY

_EPILOG = """\
settings:
  All other settings are environment variables, or lines of a file .env (the
  environment wins). The keys of a provider are NAME_KEY_1, NAME_KEY_2, ...:

    GROQ_KEY_1=gsk_...  GEMINI_KEY_1=...  nexus-gateway serve

  .env.example in the source lists every variable with its default.

examples:
  nexus-gateway serve                      serve on 127.0.0.1:3000; without a
                                           key, the built-in demo answers
  nexus-gateway serve --host 0.0.0.0       serve on all addresses (set
                                           GATEWAY_KEYS and ADMIN_TOKEN first)
  nexus-gateway serve --workers 2          serve with two processes on one port
  nexus-gateway providers                  list the installed plugins and the
                                           keys found
  nexus-gateway doctor                     find what will break or hurt here
  nexus-gateway check                      check that every key works
  nexus-gateway setup codex --write        point a client at the gateway
  nexus-gateway usage --since 7d --by day  show requests, tokens and costs
  nexus-gateway new-provider acme          write a provider plugin, with its
                                           tests, into ./nexus-acme
  nexus-gateway mock                       run a fake provider with
                                           configurable faults; needs no key
  nexus-gateway chaos                      test this gateway with all faults
"""

_SERVE = """\
Serve the OpenAI API on one port, in front of every configured provider.
SIGTERM or Ctrl-C drains: new requests are rejected, and running streams have
SHUTDOWN_TIMEOUT_MS to end; a second signal ends at once. SIGHUP reads .env
again and interrupts no request; several workers are replaced one by one.
"""

_DOCTOR = """\
Look at the settings, the installation, this machine and its host, and ask each
upstream which models it lists. One line for each finding: `breaks` if the
gateway will not start or a key cannot work, `hurts` for all else. Exit 1 if
something breaks.
"""

_SETUP = """\
Print the settings that point a client at this gateway. With --write they are
merged into the client's configuration files; what was there is kept beside
them, as FILE.TIME.bak.
"""

_USAGE = """\
Show the usage of all runs, from the ledger: requests, tokens, costs, times.
Days, hours and dates are in local time (GET /v1/usage has them in UTC).
"""

_USAGE_EPILOG = """\
examples:
  nexus-gateway usage --since 7d --by day
  nexus-gateway usage --since yesterday --until today --by model
  nexus-gateway usage --by key --format csv > usage.csv
  nexus-gateway usage --prune-before 90d    remove older requests
"""

_NEW_PROVIDER = """\
Write a distribution with a provider plugin, ready to be installed, tested and
published. Its tests pass as they are; what has to be changed is marked
"CHANGE ME".
"""

_MOCK = """\
Run a fake provider: N instances on loopback that echo the last message, and
misbehave as configured. It needs no key. To start a gateway in front of it,
use the variables that it prints. Each instance has its own port; the first
one's is --port.

A fault is NAME or NAME=VALUE; for one instance, N:NAME=VALUE:

  nexus-gateway mock --instances 3 --fault delay=200 --fault 2:status=500

While it runs, faults are read and changed outside /v1, on any of the ports:

  curl localhost:9000/faults                                the current faults
  curl -X PUT localhost:9000/faults/2 -d '{"cut": 3}'       replace those of
                                                            instance 2
  curl -X PUT localhost:9000/faults -d '{"delay": 200}'     replace all
  curl -X DELETE localhost:9000/faults                      remove all
  curl localhost:9000/stats                                 requests so far
"""

_SCRIPT = """
script:
  Each line of FILE is a wait, counted from the line before, and the faults
  from then on, as after --fault; `ok` removes them. Instances that a line
  does not name keep theirs:

    10s           2:status=500
    200requests   2:ok 3:cut=2 3:drip=20
    5s            ok
"""

_CHAOS = """\
Run a bounded campaign of faults on loopback: start a mock with several
instances, some of which misbehave in changing ways, and this gateway in front
of it; send requests, check every answer, and print a report. The same seed
gives the same faults at the same requests. Each round has a gateway of its
own, because an open circuit stays open for longer than a round takes. Of your
variables it has only settings, such as DIRECT_PATH or WEB_CONCURRENCY.

Exit 1 if a promise is broken, each with an example: an error that a perfect
gateway had avoided, an answer that is silently short or wrong, an error that
is not in OpenAI's format, an upstream's 401 that a caller sees, a hang, a
request that never ends inside, a key in an answer or in the log, an exit code
other than 0.
"""


class _Parser(argparse.ArgumentParser):
    """A parser whose help may end with text that is expensive to load."""

    more: Callable[[], str] = staticmethod(str)

    def format_help(self) -> str:
        return super().format_help() + self.more()


_Commands: TypeAlias = "argparse._SubParsersAction[_Parser]"


def _mock_more() -> str:
    from nexus_gateway.testing.faults import described

    return "\nfaults (and their defaults):\n" + "\n".join(described()) + "\n" + _SCRIPT


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    command_line = _Parser(
        prog="nexus-gateway",
        description="An AI gateway: one OpenAI-compatible API in front of many provider keys.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command_line.add_argument("--version", action="version", version=f"nexus-gateway {__version__}")
    commands = command_line.add_subparsers(
        dest="command", required=True, metavar="COMMAND", title="commands"
    )
    shared = _Parser(add_help=False)
    shared.add_argument(
        "--env-file",
        metavar="FILE",
        default=DEFAULT_ENV_FILE,
        help="read settings from FILE (.env)",
    )
    _add_serve(commands, shared)
    commands.add_parser(
        "providers",
        parents=[shared],
        help="list the installed plugins and the keys found",
        description="List the installed plugins, the keys found, and what failed to load.",
    )
    commands.add_parser(
        "check",
        parents=[shared],
        help="send one tiny request to every instance",
        description="Send one tiny real request to every instance; exit 1 if one fails.",
    )
    _add_doctor(commands, shared)
    _add_setup(commands, shared)
    _add_usage(commands, shared)
    _add_new_provider(commands)
    _add_mock(commands)
    _add_chaos(commands)
    return command_line


def _command(
    commands: _Commands,
    name: str,
    help: str,
    description: str,
    *parents: _Parser,
    epilog: str | None = None,
) -> _Parser:
    """Add a command whose texts are laid out already."""
    return commands.add_parser(
        name,
        parents=parents,
        help=help,
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def _add_doctor(commands: _Commands, shared: _Parser) -> None:
    command = _command(commands, "doctor", "find what will break or hurt here", _DOCTOR, shared)
    _add_serving(command)
    command.add_argument("--offline", action="store_true", help="ask no upstream")


def _add_setup(commands: _Commands, shared: _Parser) -> None:
    command = _command(commands, "setup", "point a client at the gateway", _SETUP, shared)
    command.add_argument("client", metavar="CLIENT", nargs="?", help="omit it to list them")
    command.add_argument("--url", help="address of the gateway (from HOST and PORT)")
    command.add_argument("--key", help="key to use (the first of GATEWAY_KEYS)")
    command.add_argument(
        "--write", action="store_true", help="write the settings into the client's files"
    )


def _add_usage(commands: _Commands, shared: _Parser) -> None:
    usage = _command(
        commands, "usage", "show requests, tokens and costs", _USAGE, shared, epilog=_USAGE_EPILOG
    )
    moment = "24h or 7d (ago), today, yesterday, or a date or time such as 2026-01-31"
    usage.add_argument("--since", metavar="TIME", help=f"start, inclusive: {moment}")
    usage.add_argument("--until", metavar="TIME", help="end, exclusive")
    usage.add_argument("--by", choices=BY, default="instance", help="group by (instance)")
    usage.add_argument("--format", choices=("table", "json", "csv"), default="table")
    usage.add_argument("--ledger", metavar="FILE", help="the ledger to read (LEDGER)")
    usage.add_argument(
        "--prune-before", metavar="TIME", help="remove requests that ended before; show no usage"
    )


def _add_serve(commands: _Commands, shared: _Parser) -> None:
    serve = _command(commands, "serve", "run the gateway", _SERVE, shared)
    _add_serving(serve)
    serve.add_argument("--demo", action="store_true", help="serve the demo provider as well")
    serve.add_argument(
        "--reload",
        action="store_true",
        help="for development: start again when code or FILE changes (extra: dev)",
    )


def _add_serving(command: _Parser) -> None:
    command.add_argument("--host", help="address to listen on (HOST, 127.0.0.1)")
    command.add_argument("--port", help="port to listen on (PORT, 3000); 0 for any free one")
    command.add_argument(
        "--workers",
        metavar="N",
        help="processes that serve (WEB_CONCURRENCY, 1); each takes memory of its own",
    )
    command.add_argument("--log-level", metavar="LEVEL", help="debug, info, warning or error")


def _add_new_provider(commands: _Commands) -> None:
    command = _command(commands, "new-provider", "write a provider plugin", _NEW_PROVIDER)
    command.add_argument("name", metavar="NAME", help='as callers will write it: "model": "NAME"')
    command.add_argument(
        "--dialect",
        choices=("openai", "custom"),
        default="openai",
        help="its API: OpenAI's (openai) or a wire format of its own (custom)",
    )
    command.add_argument("--dir", metavar="DIR", help="write into DIR (./nexus-NAME)")


def _add_mock(commands: _Commands) -> None:
    command = _command(commands, "mock", "run a fake provider with configurable faults", _MOCK)
    command.more = _mock_more
    command.add_argument("--host", default="127.0.0.1", help="address to listen on (127.0.0.1)")
    command.add_argument(
        "--port", type=_port, default=9000, help="first instance's port (9000); 0 for free ones"
    )
    command.add_argument(
        "--instances", metavar="N", type=_count, default=1, help="number of instances (1)"
    )
    command.add_argument(
        "--fault", metavar="FAULT", action="append", default=[], help="add a fault; may be repeated"
    )
    command.add_argument(
        "--script", metavar="FILE", help="change faults over time, as FILE defines"
    )
    command.add_argument(
        "--seed", metavar="N", type=int, default=0, help="seed of all random choices (0)"
    )


def _add_chaos(commands: _Commands) -> None:
    command = _command(commands, "chaos", "test a gateway with faults", _CHAOS)
    for name, metavar, default, text in (
        ("--requests", "N", 5000, "number of requests"),
        ("--instances", "N", 5, "number of instances, including the bad ones"),
        ("--bad", "N", 2, "number of instances that misbehave"),
        ("--concurrency", "N", 50, "concurrent callers"),
        ("--rounds", "N", 20, "number of rounds, each with a new gateway"),
        ("--time-limit", "S", 300, "seconds after which it stops sending, and exits with 1"),
    ):
        command.add_argument(
            name, metavar=metavar, type=_count, default=default, help=f"{text} ({default})"
        )
    command.add_argument(
        "--seed", metavar="N", type=int, default=0, help="seed of all random choices (0)"
    )
    command.add_argument(
        "--url",
        help="a gateway that is already running, on loopback and in front of a mock; only what "
        "callers see is checked",
    )
    command.add_argument(
        "--mock",
        metavar="URL",
        help="with --url: the mock whose faults the campaign changes, such as "
        "http://127.0.0.1:9000; without it they stay as they are",
    )


def _count(text: str) -> int:
    if not (text.isascii() and text.isdigit()) or not 1 <= int(text[:9]) <= 1_000_000:
        raise argparse.ArgumentTypeError("must be a whole number from 1 to 1000000")
    return int(text)


def _port(text: str) -> int:
    if not (text.isascii() and text.isdigit()) or not 0 <= int(text[:9]) <= 65535:
        raise argparse.ArgumentTypeError("must be a whole number from 0 to 65535")
    return int(text)
