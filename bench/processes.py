"""The processes of a run: how they are started and stopped, and what they use."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

HERE = Path(__file__).resolve().parent
START_S = 20.0
GATEWAY_CORE, LOAD_CORE = 0, 1
CPUCLOCK_SCHED = 2


class Running:
    """A process that listens on a loopback port, with its descendants."""

    def __init__(self, pid: int, port: int) -> None:
        self.pid = pid
        self.port = port

    def cpu_s(self) -> float:
        """Return the CPU seconds of the process and its descendants, user and system."""
        return sum(self.cpu_of_each_s())

    def cpu_of_each_s(self) -> list[float]:
        """Return the CPU seconds of each process, the parent's first."""
        return [_cpu_s(pid) for pid in _family(self.pid)]

    def memory_kib(self) -> int:
        """Return the resident memory of the process and its descendants, in KiB."""
        return sum(_memory_kib(pid) for pid in _family(self.pid))


def _family(pid: int) -> list[int]:
    pids = [pid]
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text(encoding="ascii").split():
            pids += _family(int(child))
    return pids


def _cpu_s(pid: int) -> float:
    # Linux's id for the CPU clock of another process: in nanoseconds, while /proc counts ticks.
    return time.clock_gettime(~pid << 3 | CPUCLOCK_SCHED)


def _memory_kib(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1])
    return 0


def free_port() -> int:
    """Return a port that is free; no connection gets it in the meantime, as one to port 0 might."""
    for port in range(20_000 + os.getpid() % 10_000, 32_000):
        with socket.socket() as listener, contextlib.suppress(OSError):
            listener.bind(("127.0.0.1", port))
            if port not in _given:
                _given.add(port)
                return port
    raise RuntimeError("no port is free")


_given: set[int] = set()


def pinned(core: int | None) -> None:
    """Pin this process to a core, so that the measured process has one of its own."""
    cores = sorted(os.sched_getaffinity(0))
    if core is not None and len(cores) > 1:
        os.sched_setaffinity(0, {cores[core % len(cores)]})


@contextlib.contextmanager
def running(
    command: Sequence[str],
    env: Mapping[str, str],
    port: int,
    core: int | None,
    start_s: float = START_S,
) -> Iterator[Running]:
    """Run a server until the block ends, which starts when its port accepts connections.

    Args:
        command: to run.
        env: variables in addition to this process's own.
        port: on which it will listen.
        core: to pin it to; None for any.
        start_s: the time limit of its start.
    """
    process = subprocess.Popen(  # noqa: S603 - our own programs, on loopback
        list(command),
        env={**os.environ, **env},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        preexec_fn=lambda: pinned(core),
        start_new_session=True,
        cwd=HERE,
    )
    try:
        wait_for(port, process, start_s)
        yield Running(process.pid, port)
    finally:
        _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(15)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def wait_for(port: int, process: subprocess.Popen[bytes], start_s: float) -> None:
    """Wait until a port accepts connections.

    Raises:
        RuntimeError: the process ended, or did not listen in time.
    """
    end_s = time.monotonic() + start_s
    while time.monotonic() < end_s and process.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 0.2):
            return
        time.sleep(0.005)
    raise RuntimeError(f"nothing listens on port {port}")
