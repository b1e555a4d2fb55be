"""The entry point of all commands."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import import_module

from nexus_gateway.cli.environment import WRONG_SETTINGS
from nexus_gateway.cli.parser import parser
from nexus_gateway.errors import ConfigError

INTERRUPTED = 130
BROKEN_PIPE = 141  # as a shell reports a program that SIGPIPE ended
STDOUT, STDERR = 1, 2


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        argv: the arguments; None for the process's own.

    Returns:
        The exit code: 0; 1 if the command failed, 2 for wrong settings, 130 after Ctrl-C, 141 if
        the reader of the output closed it (as `head` does).
    """
    arguments = parser().parse_args(argv)
    arguments.words = None if argv is None else list(argv)
    try:
        return _serve(arguments) if arguments.command == "serve" else _print(arguments)
    except ConfigError as error:
        for problem in error.problems:
            print(f"nexus-gateway: {problem}", file=sys.stderr)
        return WRONG_SETTINGS
    except KeyboardInterrupt:
        return INTERRUPTED


def _print(arguments: argparse.Namespace) -> int:
    """Run a command that prints, until its reader closes the pipe."""
    try:
        code = _run(arguments)
        print(end="", flush=True)
    except BrokenPipeError:
        # The interpreter would fail to write the rest when it exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    return code


def _run(arguments: argparse.Namespace) -> int:
    """Run the function that is named like the command, in the module of that name."""
    name = arguments.command.replace("-", "_")
    code: int = getattr(import_module(f"nexus_gateway.cli.{name}"), name)(arguments)
    return code


def _serve(arguments: argparse.Namespace) -> int:
    from nexus_gateway.telemetry import stderr

    _open_standard_streams()
    with stderr.unblocked():
        return _serve_unblocked(arguments)


def _serve_unblocked(arguments: argparse.Namespace) -> int:
    from nexus_gateway.cli import workers
    from nexus_gateway.server.process import block_sighup

    if not arguments.reload:
        block_sighup()
    if spec := workers.take_spec(os.environ):
        return workers.work(arguments, spec)
    if not arguments.reload and (settings := workers.settings_if_several(arguments)):
        return workers.supervise(arguments, settings)
    from nexus_gateway.cli import serve

    return serve.reload(arguments) if arguments.reload else serve.serve(arguments)


def _open_standard_streams() -> None:
    """Open the null device as stdin, stdout or stderr if they are closed.

    Otherwise a socket would get their number: uvloop ends the process when such a socket is closed,
    and a caller would receive what is printed.
    """
    while (number := os.open(os.devnull, os.O_RDWR)) <= STDERR:
        pass
    os.close(number)
    # Python sets a stream that was closed at its start to None.
    sys.stdout = sys.stdout or os.fdopen(STDOUT, "w", encoding="utf-8")
    sys.stderr = sys.stderr or os.fdopen(STDERR, "w", encoding="utf-8")
