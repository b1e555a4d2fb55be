"""What is measured: how each gateway is started, and what its processes cost."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).resolve().parent
START_S = 20.0
TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Peer:
    """A gateway that can be measured.

    Args:
        name: in the table.
        command: with {port} and {upstream} (a URL without a path) where they belong.
        env: more variables, filled in likewise.
        model: what stands before the model's name, so that the request finds its way.
    """

    name: str
    command: tuple[str, ...]
    env: dict[str, str] = field(default_factory=dict)
    model: str = ""


BARE = Peer("bare", (sys.executable, str(HERE / "bare.py"), "{port}", "{upstream}"))
NEXUS = Peer(
    "nexus",
    (sys.executable, "-m", "nexus_gateway", "serve", "--port", "{port}"),
    {"LOCAL_BASE_URL_1": "{upstream}/v1", "LOCAL_MODEL_1": "any"},
    "local/",
)


class Running:
    """A process, and what it has cost so far."""

    def __init__(self, process: subprocess.Popen[bytes], port: int) -> None:
        self.process = process
        self.port = port

    def cpu_s(self) -> float:
        """Return the CPU seconds of the process and its children, user and system."""
        return sum(_cpu_s(pid) for pid in self._pids())

    def memory_kib(self) -> int:
        """Return the resident memory of the process and its children, in KiB."""
        return sum(_memory_kib(pid) for pid in self._pids())

    def _pids(self) -> list[int]:
        pid = self.process.pid
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()
        return [pid, *map(int, children)]


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def _memory_kib(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1])
    return 0


def free_port() -> int:
    """Return a port of loopback that nobody has now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def pinned(core: int) -> None:
    """Keep this process on one core, so that what is measured has one for itself."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) > 1:
        os.sched_setaffinity(0, {cores[core % len(cores)]})


@contextlib.contextmanager
def running(
    command: tuple[str, ...], env: dict[str, str], port: int, core: int
) -> Iterator[Running]:
    """Run a server until the block ends; it is there once its port answers."""
    process = subprocess.Popen(  # noqa: S603 - our own programs, on loopback
        command,
        env={**os.environ, **env},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        preexec_fn=lambda: pinned(core),
        cwd=HERE,
    )
    try:
        wait_for(port, process)
        yield Running(process, port)
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def wait_for(port: int, process: subprocess.Popen[bytes]) -> None:
    """Wait until a port answers.

    Raises:
        RuntimeError: the process ended, or did not come in time.
    """
    end_s = time.monotonic() + START_S
    while time.monotonic() < end_s and process.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 0.2):
            return
        time.sleep(0.005)
    raise RuntimeError(f"nothing listens on port {port}")


@contextlib.contextmanager
def upstream() -> Iterator[str]:
    """Run the fake upstream; give its URL."""
    port = free_port()
    command = (sys.executable, str(HERE / "upstream.py"), str(port))
    with running(command, {}, port, core=1):
        yield f"http://127.0.0.1:{port}"


@contextlib.contextmanager
def started(peer: Peer, upstream_url: str) -> Iterator[Running]:
    """Run a gateway before the upstream."""
    port = free_port()
    words = {"port": str(port), "upstream": upstream_url}
    command = tuple(word.format(**words) for word in peer.command)
    env = {name: value.format(**words) for name, value in peer.env.items()}
    with running(command, env, port, core=0) as process:
        yield process
