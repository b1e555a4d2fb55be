"""From a built wheel to the first streamed answer, in an environment that is new and empty.

    python bench/first_answer.py             # with pip's cache empty, then filled by the first run
    python bench/first_answer.py --limit 30  # exit code 1 if a run takes longer than 30 s

pip gets the requirements from its index, so the run needs what `pip install` needs. Only the
built-in demo is asked, on loopback. Beside the wall time stands the processor time: on a machine
that others use as well the first is longer, the second is not.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from http.client import HTTPConnection
from pathlib import Path

from processes import free_port

ROOT = Path(__file__).resolve().parents[1]
STEP_S = 300.0
START_S = 30.0
EVERY_S = 0.01
KEPT = ("PATH", "LANG", "PIP_", "SSL_", "REQUESTS_")
BODY = '{"stream": true, "messages": [{"role": "user", "content": "Hello!"}]}'


def spent(step: Callable[[], None]) -> tuple[float, float]:
    """Return the seconds of a step: on the clock, and of the processor."""
    begun_s, before_s = time.monotonic(), _cpu_s()
    step()
    return time.monotonic() - begun_s, _cpu_s() - before_s


def _cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def run(*command: str | Path, env: Mapping[str, str], cwd: Path) -> None:
    done = subprocess.run(  # noqa: S603 - pip and venv of this interpreter
        command, env=env, cwd=cwd, capture_output=True, text=True, timeout=STEP_S, check=False
    )
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))} failed:\n{done.stdout}{done.stderr}")


def first_content(port: int) -> bool:
    """Ask the gateway for a stream; return whether its first content came."""
    connection = HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request(
            "POST", "/v1/chat/completions", BODY, {"Content-Type": "application/json"}
        )
        with connection.getresponse() as response:
            return any(b'"content":"' in line for line in response)
    except OSError:
        return False
    finally:
        connection.close()


def answer(program: Path, env: Mapping[str, str], cwd: Path) -> None:
    """Start the gateway, wait for its first streamed content, and stop it."""
    port = free_port()
    process = subprocess.Popen(  # noqa: S603 - our own program, on loopback
        (program, "serve", "--port", str(port)),
        env=env,
        cwd=cwd,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        end_s = time.monotonic() + START_S
        while not first_content(port):
            if time.monotonic() > end_s or process.poll() is not None:
                sys.exit("the gateway did not answer")
            time.sleep(EVERY_S)
    finally:
        process.terminate()
        process.wait(15)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--limit", type=float, default=60.0, help="most seconds that a run may take"
    )
    limit_s: float = parser.parse_args().limit
    longest_s = 0.0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        # Nothing of the user's: neither settings and keys, nor an environment, nor pip's cache.
        env = {n: v for n, v in os.environ.items() if n.startswith(KEPT)}
        env |= {"HOME": name, "PIP_CACHE_DIR": str(folder / "cache")}
        pip = (sys.executable, "-m", "pip", "--no-cache-dir")
        run(*pip, "wheel", "--no-deps", "--wheel-dir", folder, ROOT, env=env, cwd=folder)
        wheel = next(folder.glob("*.whl"))
        venv = folder / "venv"
        steps: dict[str, Callable[[], None]] = {
            "environment": lambda: run(
                sys.executable, "-m", "venv", "--clear", venv, env=env, cwd=folder
            ),
            "install": lambda: run(
                venv / "bin/pip", "install", f"{wheel}[fast]", env=env, cwd=folder
            ),
            "first answer": lambda: answer(venv / "bin/nexus-gateway", env, folder),
        }
        for cache in ("empty", "filled"):
            print(f"pip's cache {cache}:", flush=True)
            total_s = total_cpu_s = 0.0
            for step, do in steps.items():
                wall_s, cpu_s = spent(do)
                total_s, total_cpu_s = total_s + wall_s, total_cpu_s + cpu_s
                print(f"  {step:<13}{wall_s:6.1f} s, processor {cpu_s:.1f} s", flush=True)
            print(f"  {'together':<13}{total_s:6.1f} s, processor {total_cpu_s:.1f} s", flush=True)
            longest_s = max(longest_s, total_s)
    print(f"The limit of {limit_s:g} s is {'kept' if longest_s <= limit_s else 'missed'}.")
    return longest_s > limit_s


if __name__ == "__main__":
    sys.exit(main())
