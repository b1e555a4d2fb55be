"""The command line: what can be said, and its help.

What `nexus-gateway usage` may be told.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

from nexus_gateway import __version__
from nexus_gateway.cli.environment import DEFAULT_ENV_FILE
from nexus_gateway.telemetry.usage import BY

DESCRIPTION = """\
Tell what was used, from the ledger of all runs: requests, tokens, costs, times.
Days, hours and dates are in local time (GET /v1/usage has them in UTC).
"""
EPILOG = """\
examples:
  nexus-gateway usage --since 7d --by day
  nexus-gateway usage --since yesterday --until today --by model
  nexus-gateway usage --by key --format csv > usage.csv
  nexus-gateway usage --prune-before 90d    remove what is older
"""


def add(command: argparse.ArgumentParser) -> None:
    """Add what `usage` may be told."""
    moment = "24h or 7d (ago), today, yesterday, or a date or time such as 2026-01-31"
    command.add_argument("--since", metavar="TIME", help=f"from when on: {moment}")
    command.add_argument("--until", metavar="TIME", help="until when, itself not included")
    command.add_argument("--by", choices=BY, default="instance", help="what to tell apart")
    command.add_argument("--format", choices=("table", "json", "csv"), default="table")
    command.add_argument("--ledger", metavar="FILE", help="the ledger to read (LEDGER)")
    command.add_argument(
        "--prune-before", metavar="TIME", help="remove what ended before, and tell nothing else"
    )


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
  nexus-gateway mock                       a provider that is not there, with
                                           faults to choose from; needs no key
  nexus-gateway chaos                      does this gateway survive them all?
"""

_SERVE = """\
Serve the OpenAI API on one port, in front of every configured provider.
SIGTERM or Ctrl-C drains: nothing new is accepted, streams may end for
SHUTDOWN_TIMEOUT_MS; a second signal ends at once. SIGHUP reads .env anew,
and no call is lost by it; more than one worker are replaced one by one.
"""

_NEW_PROVIDER = """\
Write a distribution with a provider of your own, that can be installed,
tested and published. Its tests pass as they are; what has to be changed
is marked "CHANGE ME".
"""

_MOCK = """\
A provider that is not there: N instances on loopback that say back the last
message they are sent, and misbehave as told. It needs no key. Put a gateway
before it with the variables that it prints. Each instance has a port of its
own, the first one's is --port.

A fault is NAME or NAME=VALUE, for one instance N:NAME=VALUE:

  nexus-gateway mock --instances 3 --fault delay=200 --fault 2:status=500

While it runs, faults are read and switched outside /v1, on any of the ports:

  curl localhost:9000/faults                                which hold
  curl -X PUT localhost:9000/faults/2 -d '{"cut": 3}'       instead of those
                                                            that 2 has
  curl -X PUT localhost:9000/faults -d '{"delay": 200}'     the same for all
  curl -X DELETE localhost:9000/faults                      none any more
  curl localhost:9000/stats                                 what came so far
"""

_SCRIPT = """
script:
  Each line of FILE is a wait, counted from the line before, and the faults
  that hold from then on, as after --fault; `ok` takes them away. What a line
  names no fault for stays as it is:

    10s           2:status=500
    200requests   2:ok 3:cut=2 3:drip=20
    5s            ok
"""

_CHAOS = """\
A bounded campaign of faults on loopback: starts a mock of some instances, of
which some misbehave in ways that change, and this gateway before it, sends
requests, looks at every answer, and tells what was survived. What goes wrong
when is the same for the same seed. A gateway of its own serves each round,
as a circuit that has opened stays open for longer than a round takes. It has
no variable of yours but settings, such as DIRECT_PATH or WEB_CONCURRENCY.

Exit 1 where a promise is broken, each with an example: an error that a
perfect gateway had avoided, an answer that is short or wrong without a word,
an error that has not OpenAI's shape, an upstream's 401 that a caller sees, a
hang, a request that never ends inside, a key in an answer or in the log, an
exit that is not 0.
"""


class _Parser(argparse.ArgumentParser):
    """A parser whose help may end with what takes a moment to load."""

    more: Callable[[], str] = staticmethod(str)

    def format_help(self) -> str:
        return super().format_help() + self.more()


def _mock_more() -> str:
    from nexus_gateway.testing.faults import described

    return (
        "\nfaults (with what VALUE is, and its default):\n"
        + "\n".join(described())
        + "\n"
        + _SCRIPT
    )


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    made = _Parser(
        prog="nexus-gateway",
        description="An AI gateway: one OpenAI-compatible door in front of many provider keys.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("--version", action="version", version=f"nexus-gateway {__version__}")
    _add_commands(
        made.add_subparsers(dest="command", required=True, metavar="COMMAND", title="commands")
    )
    return made


def _add_commands(commands: argparse._SubParsersAction[_Parser]) -> None:
    shared = _Parser(add_help=False)
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
    _add_mock(commands)
    _add_chaos(commands)


def _add_usage(commands: argparse._SubParsersAction[_Parser], shared: _Parser) -> None:
    add(
        commands.add_parser(
            "usage",
            parents=[shared],
            help="tell what was used: requests, tokens, costs",
            description=DESCRIPTION,
            epilog=EPILOG,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
    )


def _add_serve(commands: argparse._SubParsersAction[_Parser], shared: _Parser) -> None:
    serve = commands.add_parser(
        "serve",
        parents=[shared],
        help="run the gateway",
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


def _add_new_provider(commands: argparse._SubParsersAction[_Parser]) -> None:
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


def _add_mock(commands: argparse._SubParsersAction[_Parser]) -> None:
    command = commands.add_parser(
        "mock",
        help="be a provider, with faults to choose from",
        description=_MOCK,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.more = _mock_more
    command.add_argument("--host", default="127.0.0.1", help="address to listen on (127.0.0.1)")
    command.add_argument(
        "--port", type=_port, default=9000, help="first instance's port (9000); 0 for free ones"
    )
    command.add_argument(
        "--instances", metavar="N", type=_count, default=1, help="how many instances (1)"
    )
    command.add_argument(
        "--fault", metavar="FAULT", action="append", default=[], help="a fault; may be repeated"
    )
    command.add_argument("--script", metavar="FILE", help="change faults as FILE says")
    command.add_argument("--seed", metavar="N", type=int, default=0, help="of all chance (0)")


def _add_chaos(commands: argparse._SubParsersAction[_Parser]) -> None:
    command = commands.add_parser(
        "chaos",
        help="try faults on a gateway",
        description=_CHAOS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    for name, metavar, default, text in (
        ("--requests", "N", 5000, "how many"),
        ("--instances", "N", 5, "how many, the bad ones among them"),
        ("--bad", "N", 2, "how many misbehave"),
        ("--concurrency", "N", 50, "callers at once"),
        ("--rounds", "N", 20, "how many gateways serve one after the other"),
        ("--time-limit", "S", 300, "seconds after which nothing is sent any more; that is exit 1"),
    ):
        command.add_argument(
            name, metavar=metavar, type=_count, default=default, help=f"{text} ({default})"
        )
    command.add_argument("--seed", metavar="N", type=int, default=0, help="of all chance (0)")
    command.add_argument(
        "--url",
        help="a gateway that runs already, on loopback and before a mock, instead of one of our "
        "own; only what callers see is looked at",
    )
    command.add_argument(
        "--mock",
        metavar="URL",
        help="with --url: the mock, such as http://127.0.0.1:9000, whose faults are to change; "
        "without it they stay as they are",
    )


def _count(text: str) -> int:
    """Read a number of things."""
    if not (text.isascii() and text.isdigit()) or not 1 <= int(text[:9]) <= 1_000_000:
        raise argparse.ArgumentTypeError("must be a whole number from 1 to 1000000")
    return int(text)


def _port(text: str) -> int:
    """Read a port."""
    if not (text.isascii() and text.isdigit()) or not 0 <= int(text[:9]) <= 65535:
        raise argparse.ArgumentTypeError("must be a whole number from 0 to 65535")
    return int(text)
