"""Start time: wall seconds from the command `serve` to the first complete chat response."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path

from load import is_good, request_for
from peers import NEXUS
from processes import GATEWAY_CORE, HERE, LOAD_CORE, Running, free_port, pinned

FAST = ("uvloop", "orjson")
START_S = 20.0
EVERY_S = 0.002
# As sitecustomize.py it runs first: an import of either fails, as if it were not installed.
WITHOUT = f"import sys\nsys.modules.update(dict.fromkeys({FAST!r}))\n"


def _is_answered(port: int, request: bytes) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), 1) as connection:
            connection.settimeout(5)
            connection.sendall(request)
            data = b""
            while piece := connection.recv(65536):
                data += piece
                if is_good(data, 0):
                    return True
    except OSError:
        pass
    return False


def start_s(backend: Running, env: dict[str, str]) -> float:
    """Start the gateway once; return the seconds to its first response."""
    port = free_port()
    values = {"port": str(port), "upstream": f"http://127.0.0.1:{backend.port}"}
    command = [word.format(**values) for word in NEXUS.command]
    filled = {name: value.format(**values) for name, value in NEXUS.env.items()}
    request = request_for(port, "whole", NEXUS.model)
    begun_s = time.monotonic()
    process = subprocess.Popen(  # noqa: S603 - our own program, on loopback
        command,
        env={**os.environ, **filled, **env},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        preexec_fn=lambda: pinned(GATEWAY_CORE),
        cwd=HERE,
    )
    try:
        while time.monotonic() - begun_s < START_S and process.poll() is None:
            if _is_answered(port, request):
                return time.monotonic() - begun_s
            time.sleep(EVERY_S)
    finally:
        process.terminate()
        process.wait(15)
    raise RuntimeError("the gateway did not answer")


def measure_start(backend: Running, times: int) -> dict[str, list[float]]:
    """Return the seconds of several starts, alternately with the extra `fast` and without.

    The first start of each does not count: it may compile, with a cold disk cache. If the extra is
    not installed, only the starts without it are measured.
    """
    print("start …", file=sys.stderr, flush=True)
    variants = ("fast", "plain") if all(map(find_spec, FAST)) else ("plain",)
    starts_s: dict[str, list[float]] = {variant: [] for variant in variants}
    cores = os.sched_getaffinity(0)
    pinned(LOAD_CORE)
    try:
        with tempfile.TemporaryDirectory() as folder:
            Path(folder, "sitecustomize.py").write_text(WITHOUT, encoding="utf-8")
            envs: dict[str, dict[str, str]] = {"fast": {}, "plain": {"PYTHONPATH": folder}}
            for number in range(times + 1):
                for variant, seconds in starts_s.items():
                    spent_s = start_s(backend, envs[variant])
                    if number:
                        seconds.append(spent_s)
    finally:
        os.sched_setaffinity(0, cores)
    return starts_s
