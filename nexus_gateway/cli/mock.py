"""`nexus-gateway mock`: a fake provider with configurable faults."""

from __future__ import annotations

import argparse
import asyncio
import signal
from collections.abc import Iterator
from pathlib import Path

from nexus_gateway import __version__
from nexus_gateway.cli.text import show, table
from nexus_gateway.errors import ConfigError
from nexus_gateway.server.sockets import os_error_text
from nexus_gateway.testing.faults import WrongFault, assign
from nexus_gateway.testing.mock import Mock, Step, read_script

MOST_INSTANCES = 1000


def mock(arguments: argparse.Namespace) -> int:
    """Run the mock until a signal ends it.

    Raises:
        ConfigError: a fault, the script or the address cannot be used.
    """
    count = arguments.instances
    if count > MOST_INSTANCES or (arguments.port and arguments.port + count - 1 > 65535):
        raise ConfigError([f"--instances: at most {MOST_INSTANCES}, and no port above 65535."])
    server = Mock(count, host=arguments.host, port=arguments.port, seed=arguments.seed)
    try:
        for number, faults in assign(arguments.fault, count).items():
            server.set(number, faults)
    except WrongFault as error:
        raise ConfigError([f"--fault: {error}"]) from None
    steps = [] if arguments.script is None else _script(arguments.script, count)
    return asyncio.run(_run(server, steps))


def _script(file: str, instances: int) -> list[Step]:
    try:
        return read_script(Path(file).read_text(encoding="utf-8"), instances)
    except (OSError, UnicodeDecodeError):
        raise ConfigError([f"--script: {file!r} cannot be read as text."]) from None
    except WrongFault as error:
        raise ConfigError([f"--script: {file}: {error}"]) from None


async def _run(server: Mock, steps: list[Step]) -> int:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    try:
        await server.__aenter__()
    except OSError as error:
        raise ConfigError([f"cannot listen: {os_error_text(error)}."]) from None
    try:
        show(_screen(server))
        script = asyncio.create_task(server.play(steps))
        await stop.wait()
        script.cancel()
    finally:
        await server.__aexit__()
    show(_summary(server))
    return 0


def _screen(server: Mock) -> Iterator[str]:
    count = len(server.instances)
    yield f"Nexus Gateway {__version__}: a mock with {count} instance{'s' if count > 1 else ''}"
    yield ""
    rows = [(i.number, server.url(i.number), _written(i.faults)) for i in server.instances]
    yield from ("  " + line for line in table(("", "base URL", "faults"), rows).splitlines())
    yield ""
    yield "Start a gateway in front of it:"
    words = [f"{name}={value}" for name, value in server.environment().items()]
    for at in range(0, len(words), 3):
        yield f"  {words[at]} \\"
        yield f"    {words[at + 1]} {words[at + 2]} \\"
    yield "  nexus-gateway serve"
    yield ""
    control = server.url(1).replace("https:", "http:").removesuffix("/v1")
    yield "Change faults while it runs (nexus-gateway mock --help lists them):"
    yield f'  curl -X PUT {control}/faults/{count} -d \'{{"status": 500, "chance": 0.3}}\''
    yield f"  curl -X DELETE {control}/faults"
    yield f"  curl {control}/stats"
    yield ""


def _written(faults: object) -> str:
    """Format faults as on the command line."""
    assert isinstance(faults, dict)
    return " ".join(name if v is None else f"{name}={v}" for name, v in faults.items()) or "none"


def _summary(server: Mock) -> Iterator[str]:
    rows = [
        (i.number, i.requests, i.connections, " ".join(f"{n}: {c}" for n, c in i.hit.items()))
        for i in server.instances
    ]
    yield table(("", "requests", "connections", "faults hit"), rows)
