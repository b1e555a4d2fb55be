"""How much code one warm request passes: modules, functions, calls, and switches between modules.

    python bench/request_shape.py [--list]

`serve` runs with its default settings (ledger in a temporary file, metrics on, log level info) in
a process of its own, in front of `upstream.py`, under `sys.setprofile`. After a warm-up it answers
the same request several times; the most frequent result is printed, so that a timer that fires
in between (a log flush, a new second) changes nothing. LEDGER and METRICS of the environment win.

Measured is what the event loop's thread runs from the request's arrival until the loop has nothing
left to do for it, observers included; work in other threads and on timers is not. A frame is ours
if its code lies in a file of `nexus_gateway` or `nexus_gateway_plugins`; methods that `dataclass`
generates lie in none. Counted are:

- modules and functions of ours that were entered at least once,
- calls of ours, and calls of any Python function; resuming a coroutine or a generator is a call,
- calls into another module: the nearest caller of ours is in a different module,
- module switches: two consecutive calls of ours are in different modules.

The figures depend on the version of Python (before 3.12 a comprehension is a function) and, for
all calls, on the event loop. With `--list` the modules follow in the order of their first entry,
each with its functions and the number of their calls.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from importlib.metadata import entry_points
from itertools import pairwise
from pathlib import Path
from types import FrameType
from typing import NamedTuple

from load import LAST, chunks_of, is_good, request_for
from peers import NEXUS, upstream
from processes import START_S, free_port

SERVE = "--serve"
OURS = ("nexus_gateway", "nexus_gateway_plugins")
SCRIPTS = {"streamed chat": "stream-32", "small answer": "whole"}
WARM_UP, REQUESTS = 60, 25
LOOP_PASSES = 5
LIMIT_S = 120.0


class Call(NamedTuple):
    """A call of a Python function; a module is empty if it is not ours."""

    module: str
    function: str
    caller: str


Shape = tuple[Call, ...]


class Recorder:
    """Records the calls in the thread of the event loop while a request is answered."""

    def __init__(self) -> None:
        self._calls: list[Call] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    def profile(self, frame: FrameType, event: str, _: object) -> None:
        """Record a call; for `sys.setprofile`."""
        if self._calls is None or event != "call":
            return
        self._loop = self._loop or asyncio.get_running_loop()
        module, caller = _module(frame), ""
        before = frame.f_back
        while module and before is not None and not (caller := _module(before)):
            before = before.f_back
        code = frame.f_code
        self._calls.append(Call(module, f"{code.co_qualname}:{code.co_firstlineno}", caller))

    def record(self, request: Callable[[], None]) -> Shape:
        """Return the calls of one request; for a thread other than the loop's."""
        calls = self._calls = []
        request()
        self._wait_until_idle()
        self._calls = None
        return tuple(calls)

    def _wait_until_idle(self) -> None:
        assert self._loop is not None
        passed = threading.Lock()
        passed.acquire()
        for _ in range(LOOP_PASSES):
            # A built-in function: it is not recorded itself.
            self._loop.call_soon_threadsafe(passed.release)
            passed.acquire()


def _module(frame: FrameType) -> str:
    name: str = frame.f_globals.get("__name__", "")
    is_ours = name.split(".", 1)[0] in OURS and frame.f_code.co_filename[0] != "<"
    return name if is_ours else ""


def connect(port: int) -> socket.socket:
    """Connect to the gateway as soon as it listens."""
    end_s = time.monotonic() + START_S
    while True:
        try:
            return socket.create_connection(("127.0.0.1", port), LIMIT_S)
        except ConnectionRefusedError:
            if time.monotonic() > end_s:
                raise
            time.sleep(0.01)


def send(connection: socket.socket, request: bytes, chunks: int) -> None:
    """Send a request and read its answer to the end."""
    connection.sendall(request)
    data = b""
    while not (is_good(data, chunks) and (b"\r\nContent-Length: " in data or data.endswith(LAST))):
        piece = connection.recv(1 << 20)
        if not piece:
            raise RuntimeError("the gateway closed the connection")
        data += piece


def measure(recorder: Recorder, port: int, file: Path) -> None:
    """Send the requests, write the usual shape of each, and end this process."""
    try:
        usual: dict[str, Shape] = {}
        with connect(port) as connection:
            for name, script in SCRIPTS.items():
                request, chunks = request_for(port, script, NEXUS.model), chunks_of(script)
                recorded = [
                    recorder.record(lambda: send(connection, request, chunks))  # noqa: B023
                    for _ in range(WARM_UP + REQUESTS)
                ]
                [(usual[name], _)] = Counter(recorded[WARM_UP:]).most_common(1)
        file.write_text(json.dumps(usual), encoding="utf-8")
    finally:
        os.kill(os.getpid(), signal.SIGTERM)


def serve(port: str, file: str) -> int:
    """Run the gateway in this thread and its caller in another one."""
    recorder = Recorder()
    threading.Thread(target=measure, args=(recorder, int(port), Path(file))).start()
    [command] = entry_points(group="console_scripts", name="nexus-gateway")
    run = command.load()
    sys.setprofile(recorder.profile)
    code: int = run(["serve", "--port", port])
    return code


def shapes() -> dict[str, Shape]:
    """Return the usual shape of each request."""
    with upstream(core=None) as backend, tempfile.TemporaryDirectory() as folder:
        port, file = free_port(), Path(folder) / "shapes"
        url = f"http://127.0.0.1:{backend.port}"
        env = {name: value.format(upstream=url) for name, value in NEXUS.env.items()}
        env |= {"LEDGER": f"sqlite:///{folder}/ledger.sqlite3", "METRICS": "true"}
        kept = {name: os.environ[name] for name in ("LEDGER", "METRICS") if name in os.environ}
        command = [sys.executable, str(Path(__file__).resolve()), SERVE, str(port), str(file)]
        done = subprocess.run(  # noqa: S603 - our own program, on loopback
            command,
            env={**os.environ, **env, **kept, "LOG_LEVEL": "info"},
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
        )
        if not file.exists():
            sys.exit(f"the gateway did not answer:\n{done.stderr}")
        usual = json.loads(file.read_text(encoding="utf-8"))
    return {name: tuple(Call(*call) for call in calls) for name, calls in usual.items()}


def figures(shape: Shape) -> dict[str, int]:
    """Return what is counted, by its name in the table."""
    ours = [call for call in shape if call.module]
    return {
        "modules": len({call.module for call in ours}),
        "functions": len({(call.module, call.function) for call in ours}),
        "calls": len(ours),
        "calls of any Python function": len(shape),
        "calls into another module": sum(call.caller not in ("", call.module) for call in ours),
        "module switches": sum(a.module != b.module for a, b in pairwise(ours)),
    }


def listing(shape: Shape) -> str:
    """Return the modules in the order of their first entry, each with its functions."""
    modules: dict[str, Counter[str]] = {}
    for call in shape:
        if call.module:
            modules.setdefault(call.module, Counter())[call.function] += 1
    return "\n".join(
        "\n".join([module, *(f"{count:5} {name}" for name, count in functions.items())])
        for module, functions in modules.items()
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--list", action="store_true", help="list the modules and functions")
    arguments = parser.parse_args()
    shape_by_name = shapes()
    rows = {name: figures(shape) for name, shape in shape_by_name.items()}
    print(f"{'':28}" + "".join(f"  {name:>13}" for name in rows))
    for figure in next(iter(rows.values())):
        print(f"{figure:28}" + "".join(f"  {row[figure]:13}" for row in rows.values()))
    if arguments.list:
        for name, shape in shape_by_name.items():
            print(f"\n{name}\n{listing(shape)}")


if __name__ == "__main__":
    if sys.argv[1:2] == [SERVE]:
        sys.exit(serve(*sys.argv[2:]))
    main()
