"""Profile the gateway with cProfile: the time of a request by function.

    python bench/functions.py [SCRIPT [REQUESTS [CALLERS [LINES]]]]

SCRIPT selects the response of `upstream.py`: `whole`, `stream-32-0`, `stream-32-20`… Profiling
makes a function about three times slower: read the shares, not the microseconds.
"""

from __future__ import annotations

import cProfile
import pstats
import subprocess
import sys
import tempfile
from pathlib import Path

from peers import NEXUS, upstream
from processes import HERE, free_port, running

SERVE = "--serve"


def serve(port: str, file: str) -> None:
    """Run the gateway under the profiler, and write the profile at the end."""
    from nexus_gateway.cli.main import main

    profile = cProfile.Profile()
    try:
        profile.runcall(main, ["serve", "--port", port])
    finally:
        profile.dump_stats(file)


def show(file: str, requests: int, lines: int) -> None:
    """Print the most expensive functions, except those that only run at the start."""
    stats = pstats.Stats(file).stats  # type: ignore[attr-defined]
    rows = []
    for (path, line, name), (_, calls, own_s, all_s, _) in stats.items():
        if calls >= 0.9 * requests:
            file_name = path.split("site-packages/")[-1].split("/lib/python")[-1].removeprefix("~")
            figures = (own_s / requests * 1e6, all_s / requests * 1e6, calls / requests)
            rows.append((*figures, f"{file_name}:{line} {name}"))
    print(f"{sum(row[2] for row in rows):.0f} calls a request\n")
    print("own µs  with callees  calls")
    for own_us, all_us, calls, place in sorted(rows, reverse=True)[:lines]:
        print(f"{own_us:6.2f}  {all_us:12.2f}  {calls:5.1f}  {place}")


def main() -> None:
    script, *numbers = (*sys.argv[1:], *("whole", "3000", "32", "40")[len(sys.argv) - 1 :])
    requests, callers, lines = map(int, numbers)
    with upstream() as backend, tempfile.TemporaryDirectory() as folder:
        port, file = free_port(), str(Path(folder) / "profile")
        url = f"http://127.0.0.1:{backend.port}"
        env = {name: value.format(port=port, upstream=url) for name, value in NEXUS.env.items()}
        command = (sys.executable, str(Path(__file__)), SERVE, str(port), file)
        with running(command, env, port, core=0):
            load = [sys.executable, str(HERE / "load.py"), str(port), script]
            load += ["--requests", str(requests), "--callers", str(callers)]
            load += ["--model", NEXUS.model]
            subprocess.run(load, check=True)  # noqa: S603 - our own program, on loopback
        show(file, requests, lines)


if __name__ == "__main__":
    if sys.argv[1:2] == [SERVE]:
        serve(*sys.argv[2:])
    else:
        main()
