"""From the command to the first answer: wall seconds of `serve` until a chat comes back whole."""

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
# Read by Python before anything else: an import of either fails, as where they are not installed.
WITHOUT = f"import sys\nsys.modules.update(dict.fromkeys({FAST!r}))\n"


def _answered(port: int, request: bytes) -> bool:
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


def start_s(behind: Running, env: dict[str, str]) -> float:
    """Start the gateway once; return the seconds to its first answer.

    Raises:
        RuntimeError: none came.
    """
    port = free_port()
    words = {"port": str(port), "upstream": f"http://127.0.0.1:{behind.port}"}
    command = [word.format(**words) for word in NEXUS.command]
    filled = {name: value.format(**words) for name, value in NEXUS.env.items()}
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
            if _answered(port, request):
                return time.monotonic() - begun_s
            time.sleep(EVERY_S)
    finally:
        process.terminate()
        process.wait(15)
    raise RuntimeError("the gateway gave no answer")


def measure_start(behind: Running, times: int) -> dict[str, list[float]]:
    """Return the seconds of several starts, with the extra `fast` and without, in turn.

    The first of each is left out: it may have to compile, and finds nothing in the disk's cache.
    Where the extra is not installed there are none with it.
    """
    print("start …", file=sys.stderr, flush=True)
    ways = ("fast", "plain") if all(map(find_spec, FAST)) else ("plain",)
    taken: dict[str, list[float]] = {way: [] for way in ways}
    cores = os.sched_getaffinity(0)
    pinned(LOAD_CORE)
    try:
        with tempfile.TemporaryDirectory() as folder:
            Path(folder, "sitecustomize.py").write_text(WITHOUT, encoding="utf-8")
            envs: dict[str, dict[str, str]] = {"fast": {}, "plain": {"PYTHONPATH": folder}}
            for time_ in range(times + 1):
                for way, values in taken.items():
                    spent_s = start_s(behind, envs[way])
                    if time_:
                        values.append(spent_s)
    finally:
        os.sched_setaffinity(0, cores)
    return taken
