"""The gateways that are measured, and how each is started in front of the upstream."""

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
        name: in the tables.
        command: with the placeholders {port}, {spare} (a second port) and {upstream} (a URL).
        env: additional variables, with the same placeholders.
        model: the model's name in the requests.
        headers: additional ones, each as NAME:VALUE, with the same placeholders.
        version: the installed version.
        start_s: the time limit of its start.
        share: its share of a round's requests, below 1 if it would take too long.
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
        """Return the peer's part of `count` requests, callers or streams."""
        return count if self.share == 1 else max(min(count, 8), round(count * self.share))


@dataclass(frozen=True)
class Started:
    """A running gateway, and the headers of its requests."""

    peer: Peer
    process: Running
    headers: tuple[str, ...] = ()


# The load goes directly to the upstream, so the cost is the upstream's.
DIRECT = Peer("direct")
BARE = Peer("bare", (sys.executable, str(HERE / "bare.py"), "{port}", "{upstream}"))
SERVE = (sys.executable, "-m", "nexus_gateway", "serve", "--port", "{port}")
LOCAL = {"LOCAL_BASE_URL_1": "{upstream}/v1", "LOCAL_MODEL_1": "any"}
NEXUS = Peer("nexus", SERVE, {**LOCAL, "LEDGER": "off", "METRICS": "false"}, "local/any")
OURS = (DIRECT, BARE, NEXUS)
LEDGER = Path(tempfile.gettempdir()) / f"nexus-bench-{os.getpid()}.sqlite3"


def observed_variants(collector: Running) -> Iterator[Peer]:
    """Yield our gateway with more and more observers.

    First with the ledger and metrics, which are on by default if their extras are installed; then
    with traces of one request in twenty as well, then with traces of all, sent to the collector.
    """
    on = {**LOCAL, "LEDGER": f"sqlite:///{LEDGER}", "METRICS": "true"}
    yield Peer("watched", SERVE, on, "local/any")
    traced = {**on, "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{collector.port}"}
    some = {"OTEL_TRACES_SAMPLER": "parentbased_traceidratio", "OTEL_TRACES_SAMPLER_ARG": "0.05"}
    yield Peer("watched, 1 in 20 traced", SERVE, {**traced, **some}, "local/any")
    yield Peer("watched, all traced", SERVE, traced, "local/any")


@contextlib.contextmanager
def ledger() -> Iterator[None]:
    """Remove the ledger file when the block ends."""
    try:
        yield
    finally:
        for file in LEDGER.parent.glob(LEDGER.name + "*"):
            file.unlink(missing_ok=True)


@contextlib.contextmanager
def upstream(core: int | None = LOAD_CORE) -> Iterator[Running]:
    port = free_port()
    command = (sys.executable, str(HERE / "upstream.py"), str(port))
    with running(command, {}, port, core) as process:
        yield process


@contextlib.contextmanager
def started(peer: Peer, backend: Running, core: int | None = GATEWAY_CORE) -> Iterator[Started]:
    """Start a gateway in front of the upstream; for a peer without a command, use the upstream."""
    if not peer.command:
        yield Started(peer, backend)
        return
    port = free_port()
    url = f"http://127.0.0.1:{backend.port}"
    values = {"port": str(port), "spare": str(free_port()), "upstream": url}
    command = [word.format(**values) for word in peer.command]
    env = {name: value.format(**values) for name, value in peer.env.items()}
    with running(command, env, port, core, peer.start_s) as process:
        yield Started(peer, process, tuple(line.format(**values) for line in peer.headers))
