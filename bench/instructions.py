"""What a request costs in instructions, by callgrind: a figure that other processes do not change.

    python bench/instructions.py [--check | --record]

Bare aiohttp (`bare.py`) and the gateway with everything that is on by default (ledger, metrics,
log level info) answer the same requests, one after another, in front of `upstream.py`, each in a
process of its own under valgrind. Counted are the user instructions of the event loop's thread
between two marks, after a warm-up, per request; in a second process without valgrind, the calls of
Python functions. Work in other threads (the ledger's, the log's) and in the kernel is not counted.
Records are observed in full batches of one size, so that neither a timer nor chance decides in
which request that work falls.

The ratio to bare hardly depends on the machine. `instructions/3.11.json` has it for Python 3.11,
with the versions it was taken with; `--record` writes that file, and `--check` fails if a ratio has
grown by more than 2 % or the calls by more than 1 %. Without valgrind, on another processor than
x86-64, or with other versions, there is nothing to compare with: then it says so and passes.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import gc
import json
import mmap
import os
import platform
import re
import runpy
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import entry_points
from pathlib import Path
from types import FrameType
from typing import Any

from cost_record import Figures, growth, summary, versions
from load import chunks_of, request_for
from peers import NEXUS, upstream
from processes import HERE, free_port
from request_shape import LIMIT_S, connect, send

CHILD = "--serve"
SCRIPTS = {"small answer": "whole", "32 chunks": "stream-32"}
KINDS = ("bare", "gateway")
# Multiples of the recorder's batch.
WARM_UP, REQUESTS = 64, 96
START, END, DONE = b"s", b"e", b"."
FILE = HERE / "instructions" / f"3.{sys.version_info.minor}.json"
# A function of one argument that passes it to valgrind: its request is this sequence of rotations,
# which do nothing anywhere else (valgrind.h, VALGRIND_DO_CLIENT_REQUEST_EXPR for amd64-linux).
REQUEST = bytes.fromhex(
    "4889f8"  # mov rax, rdi
    "31d2"  # xor edx, edx
    "48c1c703 48c1c70d 48c1c73d 48c1c733"  # rol rdi, 3; 13; 61; 51
    "4887db"  # xchg rbx, rbx
    "4889d0 c3"  # mov rax, rdx; ret
)
# callgrind.h: the requests of the tool 'CT'.
DUMP_STATS, ZERO_STATS, START_COUNTING, STOP_COUNTING = (0x43540000 + n for n in (0, 1, 4, 5))


class Callgrind:
    """Counts the instructions between the marks; callgrind writes them to a file."""

    def __init__(self) -> None:
        self._code = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | 4)
        self._code.write(REQUEST)
        address = ctypes.addressof(ctypes.c_char.from_buffer(self._code))
        self._ask = ctypes.PYFUNCTYPE(ctypes.c_uint64, ctypes.c_void_p)(address)
        # Requests are made inside the counted range: their arguments exist before.
        self._begin = [_request(n) for n in (ZERO_STATS, START_COUNTING)]
        self._end = [_request(n) for n in (DUMP_STATS, STOP_COUNTING)]

    def start(self) -> None:
        for request in self._begin:
            self._ask(request)

    def stop(self) -> None:
        for request in self._end:
            self._ask(request)


def _request(number: int) -> Any:
    return (ctypes.c_uint64 * 6)(number)


class Calls:
    """Counts the calls of Python functions between the marks, and writes them to a file."""

    def __init__(self, file: str) -> None:
        self._file = Path(file)
        self._count = 0

    def start(self) -> None:
        sys.setprofile(self._profile)

    def stop(self) -> None:
        sys.setprofile(None)
        self._file.write_text(f"totals: {self._count}\n", encoding="ascii")
        self._count = 0

    def _profile(self, frame: FrameType, event: str, _: object) -> None:
        self._count += event == "call"


def serve(kind: str, marks: str, file: str, port: str, backend: str) -> None:
    """Run one of the KINDS, and count between the marks that come on the descriptor `marks`."""
    import uvloop

    counter = Calls(file) if file else Callgrind()
    new_loop = uvloop.new_event_loop

    def marked_loop() -> uvloop.Loop:
        loop = new_loop()
        loop.add_reader(int(marks), mark, loop)
        return loop

    def mark(loop: uvloop.Loop) -> None:
        read = os.read(int(marks), 1)
        if read == START:
            gc.collect()
            counter.start()
        elif read == END:
            counter.stop()
        else:
            loop.remove_reader(int(marks))
            return
        os.write(int(marks), DONE)

    uvloop.new_event_loop = marked_loop
    if kind == "bare":
        sys.argv = ["bare.py", port, backend]
        runpy.run_path(str(HERE / "bare.py"), run_name="__main__")
        return
    from nexus_gateway.telemetry import pricing, recorder, timeline
    from nexus_gateway.telemetry.metrics import counting

    # The ledger's thread loads it at some time, and the collector then walks what it has so far.
    pricing._price_list()

    recorder.BATCH_S = 3600.0
    timeline.BATCH = counting.BATCH = recorder.MAX_BATCH
    [command] = entry_points(group="console_scripts", name="nexus-gateway")
    command.load()(["serve", "--port", port])


@contextlib.contextmanager
def counted(
    kind: str, folder: str, backend: str, *, calls: bool
) -> Iterator[Callable[[str], float]]:
    """Start one of the KINDS; yield what returns a script's instructions, or calls, per request."""
    port, out = free_port(), f"{folder}/{kind}-{'calls' if calls else 'callgrind'}"
    ours, theirs = socket.socketpair()
    env = {name: value.format(upstream=backend) for name, value in NEXUS.env.items()}
    env |= {"LEDGER": f"sqlite:///{folder}/{kind}.sqlite3", "METRICS": "true", "LOG_LEVEL": "info"}
    python = [sys.executable, str(Path(__file__).resolve()), CHILD, kind]
    arguments = [str(theirs.fileno()), out if calls else "", str(port), backend]
    valgrind = [
        "valgrind",
        "-q",
        "--tool=callgrind",
        "--instr-atstart=no",
        "--separate-threads=yes",
    ]
    tool = [] if calls else [*valgrind, f"--callgrind-out-file={out}"]
    process = subprocess.Popen(  # noqa: S603 - our own program, on loopback
        [*tool, *python, *arguments],
        env={"PATH": os.environ["PATH"], "PYTHONHASHSEED": "0", **env},
        cwd=folder,
        pass_fds=[theirs.fileno()],
        stdout=subprocess.DEVNULL,
        stderr=(log := Path(folder, f"{kind}.log")).open("wb"),
    )
    theirs.close()
    try:
        ours.settimeout(LIMIT_S)
        while not _listens(port):
            if process.poll() is not None:
                sys.exit(f"{kind} did not start:\n{log.read_text(encoding='utf-8')}")
            time.sleep(0.1)
        connection = connect(port)
        with connection:
            yield lambda script: _count(script, port, connection, ours, out)
    finally:
        ours.close()
        process.terminate()
        process.wait(30)


def _listens(port: int) -> bool:
    with socket.socket() as connection:
        return connection.connect_ex(("127.0.0.1", port)) == 0


def _count(
    script: str, port: int, connection: socket.socket, marks: socket.socket, out: str
) -> float:
    request, chunks = request_for(port, script, NEXUS.model), chunks_of(script)
    for _ in range(WARM_UP):
        send(connection, request, chunks)
    _mark(marks, START)
    for _ in range(REQUESTS):
        send(connection, request, chunks)
    _mark(marks, END)
    folder, name = os.path.split(out)
    files = sorted(Path(folder).glob(f"{name}*"), key=lambda file: file.stat().st_mtime_ns)
    totals = [re.search(r"^totals: (\d+)", file.read_text(), re.MULTILINE) for file in files]
    counts = [int(found[1]) for found in totals if found]
    for file in files:
        file.unlink()
    return max(counts) / REQUESTS


def _mark(marks: socket.socket, mark: bytes) -> None:
    marks.sendall(mark)
    if marks.recv(1) != DONE:
        raise RuntimeError("the process has ended")


def measure() -> Figures:
    """Return the instructions and the calls of each kind for each script, per request."""
    figures: Figures = {name: {kind: {} for kind in KINDS} for name in SCRIPTS}
    with upstream(core=None) as backend, tempfile.TemporaryDirectory() as folder:
        url = f"http://127.0.0.1:{backend.port}"

        def measure_one(kind: str) -> None:
            for what, calls in (("calls", True), ("instructions", False)):
                with counted(kind, folder, url, calls=calls) as count:
                    for name, script in SCRIPTS.items():
                        figures[name][kind][what] = count(script)

        with ThreadPoolExecutor() as both:
            list(both.map(measure_one, KINDS))
    return figures


def obstacle() -> str:
    """Return why nothing can be measured; "" if it can."""
    if platform.machine() != "x86_64":
        return f"instructions are counted on x86-64 only, not on {platform.machine()}"
    return "" if shutil.which("valgrind") else "valgrind is not installed"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    chosen = parser.add_mutually_exclusive_group()
    chosen.add_argument("--check", action="store_true", help="fail if a request costs more")
    chosen.add_argument("--record", action="store_true", help="write the file")
    arguments = parser.parse_args()
    recorded = json.loads(FILE.read_text("utf-8")) if FILE.exists() else {"versions": None}
    reason = obstacle()
    if arguments.check and not reason and recorded["versions"] != versions():
        reason = f"{FILE.name} was recorded with {recorded['versions']}, here are {versions()}"
    if reason:
        print(f"Not measured: {reason}.")
        return 0
    figures = measure()
    found = summary(figures)
    lines = growth(recorded, found) if arguments.check else []
    if lines:  # once more, as chance only adds
        figures = measure()
        found = summary(figures)
        lines = growth(recorded, found)
    for name, of_kind in figures.items():
        for kind, figure in of_kind.items():
            print(
                f"{name:13} {kind:8} {figure['instructions']:11,.0f} instructions"
                f" {figure['calls']:8.1f} calls"
            )
        print(f"{name:13} {'ratio':8} {found['ratios'][name]:11.4f}")
    if arguments.record:
        FILE.parent.mkdir(exist_ok=True)
        FILE.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    for line in lines:
        print(f"A request costs more than {FILE.name} records: {line}.")
    return bool(lines)


if __name__ == "__main__":
    if sys.argv[1:2] == [CHILD]:
        serve(*sys.argv[2:])
    else:
        sys.exit(main())
