"""The commands. The only place that reads the process's environment and prints."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import import_module

from nexus_gateway.cli.environment import WRONG_SETTINGS
from nexus_gateway.cli.parser import parser
from nexus_gateway.errors import ConfigError

# What a shell says of a program that SIGPIPE ended.
NOBODY_READS = 141
STDOUT, STDERR = 1, 2


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        argv: the arguments; None for the process's own.

    Returns:
        The exit code: 2 for wrong settings, 1 for what failed, 130 after Ctrl-C, 141 where
        whoever read what is printed has gone (as `head` does), else 0.
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
        return 130


def _print(arguments: argparse.Namespace) -> int:
    """Run a command that prints, as long as somebody reads it."""
    try:
        code = _run(arguments)
        print(end="", flush=True)
    except BrokenPipeError:
        # What is not written yet would fail once more when the interpreter ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return NOBODY_READS
    return code


def _run(arguments: argparse.Namespace) -> int:
    """Run a command: the function of its name in the module of its name."""
    name = arguments.command.replace("-", "_")
    code: int = getattr(import_module(f"nexus_gateway.cli.{name}"), name)(arguments)
    return code


def _fill_standard_places() -> None:
    """Put nothing where stdin, stdout or stderr was closed, or a socket would take its place.

    uvloop ends the process when such a socket is closed, and what is printed would go to a caller.
    """
    while (number := os.open(os.devnull, os.O_RDWR)) <= STDERR:
        pass
    os.close(number)
    # Python has no such stream where it found none.
    sys.stdout = sys.stdout or os.fdopen(STDOUT, "w", encoding="utf-8")
    sys.stderr = sys.stderr or os.fdopen(STDERR, "w", encoding="utf-8")


def _serve(arguments: argparse.Namespace) -> int:
    from nexus_gateway.cli import workers
    from nexus_gateway.server.process import block_sighup

    _fill_standard_places()
    if not arguments.reload:
        block_sighup()
    if place := workers.place(os.environ):
        return workers.work(arguments, place)
    if not arguments.reload and (settings := workers.settings_of_several(arguments)):
        return workers.supervise(arguments, settings)
    from nexus_gateway.cli import serve

    return serve.reload(arguments) if arguments.reload else serve.serve(arguments)
