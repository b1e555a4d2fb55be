"""What is measured: how each gateway is started before the upstream."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from processes import GATEWAY_CORE, HERE, LOAD_CORE, START_S, Running, free_port, running


@dataclass(frozen=True)
class Peer:
    """A gateway that can be measured.

    Args:
        name: in the table.
        command: with {port}, {spare} (one more port) and {upstream} (a URL without a path).
        env: more variables, filled in likewise.
        model: what the request calls the model, so that it finds its way.
        headers: what the request needs beside, each as NAME:VALUE, filled in likewise.
        version: of what was installed.
        start_s: how long it may take to come.
        share: of a round's requests that it gets; less than all where it would take too long.
    """

    name: str
    command: tuple[str, ...] = ()
    env: dict[str, str] = field(default_factory=dict)
    model: str = "any"
    headers: tuple[str, ...] = ()
    version: str = ""
    start_s: float = START_S
    share: float = 1.0

    def part_of(self, count: int) -> int:
        """Return how many of so many requests, callers or streams it gets."""
        return count if self.share == 1 else max(min(count, 8), round(count * self.share))


@dataclass(frozen=True)
class Started:
    """A gateway that runs, and what its requests carry."""

    peer: Peer
    process: Running
    headers: tuple[str, ...] = ()


# The load goes straight to the upstream; its cost is then the upstream's.
DIRECT = Peer("direct")
BARE = Peer("bare", (sys.executable, str(HERE / "bare.py"), "{port}", "{upstream}"))
SERVE = (sys.executable, "-m", "nexus_gateway", "serve", "--port", "{port}")
LOCAL = {"LOCAL_BASE_URL_1": "{upstream}/v1", "LOCAL_MODEL_1": "any"}
NEXUS = Peer("nexus", SERVE, {**LOCAL, "LEDGER": "off", "METRICS": "false"}, "local/any")
OURS = (DIRECT, BARE, NEXUS)
LEDGER = Path(tempfile.gettempdir()) / f"nexus-bench-{os.getpid()}.sqlite3"


def watched_by(collector: Running) -> Iterator[Peer]:
    """Give our gateway as it is looked at more and more.

    First by the ledger and metrics, which are on where their extras are there; then by traces of
    one request in twenty as well, then by traces of all.

    Args:
        collector: of the traces.
    """
    on = {**LOCAL, "LEDGER": f"sqlite:///{LEDGER}", "METRICS": "true"}
    yield Peer("watched", SERVE, on, "local/any")
    traced = {**on, "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{collector.port}"}
    some = {"OTEL_TRACES_SAMPLER": "parentbased_traceidratio", "OTEL_TRACES_SAMPLER_ARG": "0.05"}
    yield Peer("watched, 1 in 20 traced", SERVE, {**traced, **some}, "local/any")
    yield Peer("watched, all traced", SERVE, traced, "local/any")


@contextlib.contextmanager
def ledger() -> Iterator[None]:
    """Remove the ledger when the block ends."""
    try:
        yield
    finally:
        for left in LEDGER.parent.glob(LEDGER.name + "*"):
            left.unlink(missing_ok=True)


@contextlib.contextmanager
def upstream(core: int | None = LOAD_CORE) -> Iterator[Running]:
    """Run the fake upstream."""
    port = free_port()
    command = (sys.executable, str(HERE / "upstream.py"), str(port))
    with running(command, {}, port, core) as process:
        yield process


@contextlib.contextmanager
def started(peer: Peer, behind: Running, core: int | None = GATEWAY_CORE) -> Iterator[Started]:
    """Run a gateway before the upstream; before nothing at all, it is the upstream itself."""
    if not peer.command:
        yield Started(peer, behind)
        return
    port = free_port()
    url = f"http://127.0.0.1:{behind.port}"
    words = {"port": str(port), "spare": str(free_port()), "upstream": url}
    command = [word.format(**words) for word in peer.command]
    env = {name: value.format(**words) for name, value in peer.env.items()}
    with running(command, env, port, core, peer.start_s) as process:
        yield Started(peer, process, tuple(line.format(**words) for line in peer.headers))
