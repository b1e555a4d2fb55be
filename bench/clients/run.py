"""Real clients in front of the gateway, which stands in front of scripted upstreams.

    python bench/clients/run.py                                   # every client, every scenario
    python bench/clients/run.py --only "claude code" codex --scenario tool gemini
    python bench/clients/run.py --record /tmp/exchanges           # every request and answer as JSON

Clients are installed into a cache folder of the user, the first time or if `--newest` is given.
While they run they reach nothing but loopback, and know nothing of the developer's settings.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import json
import os
import signal
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from clients.backends import BACKENDS, FOUND, expected, play
from clients.bounded import Ended, clean, gateway, run
from clients.catalogue import CLIENTS, PIXEL, Client, Task
from clients.registries import NODE
from clients.scenarios import ANSWER, ERROR, SCENARIOS, WAITING, Scenario
from clients.tap import Exchange, Tap

from nexus_gateway.testing.strict import StrictUpstream

LIMIT_S = 60.0
NOT_FOR_IT = "–"
THOUGHT = "Hm."  # of every `Reply` with reasoning


@dataclass(frozen=True)
class Result:
    """How one client did in one scenario."""

    cell: str
    ended: Ended | None = None
    exchanges: Sequence[Exchange] = ()
    complaints: Sequence[str] = ()

    @property
    def good(self) -> bool:
        return self.cell == NOT_FOR_IT or self.cell.startswith("ok")


async def attempt(client: Client, scenario: Scenario, limit_s: float) -> Result:
    """Let a client do one scenario, with a gateway, an upstream and a home of its own."""
    if scenario.needs & client.lacks:
        return Result(NOT_FOR_IT)
    backend = BACKENDS[scenario.backend]
    async with contextlib.AsyncExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="client-")))
        work = home / "work"
        work.mkdir()
        upstream = await stack.enter_async_context(backend.fake())
        settings = backend.environment(upstream.base_url)
        port = await stack.enter_async_context(gateway(settings, home))
        tap = await stack.enter_async_context(Tap(port))
        note, picture = work / "note.txt", work / "picture.png"
        note.write_text(FOUND + "\n", encoding="utf-8")
        picture.write_bytes(base64.b64decode(PIXEL))
        play(scenario, note, upstream)
        task = Task(scenario=scenario, url=tap.url, note=note, picture=picture)
        ended = await _run(client, task, home, limit_s)
        complaints = upstream.complaints if isinstance(upstream, StrictUpstream) else []
        cell = _judged(scenario, ended, tap.exchanges, complaints)
        return Result(cell, ended, tap.exchanges, complaints)


async def _run(client: Client, task: Task, home: Path, limit_s: float) -> Ended:
    path = os.pathsep.join((str(client.packages.bin), str(NODE.bin), os.defpath))
    env = {**clean(home, path), **client.env(task)}
    for name, content in client.files(task).items():
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (home / name).write_text(content, encoding="utf-8")
    ended = Ended(0, "", 0.0)
    for command in client.commands(task):
        following = await run(command, env, task.note.parent, limit_s)
        output = ended.output + following.output
        ended = Ended(following.code, output, ended.seconds + following.seconds)
        if following.code != 0:
            break
    return ended


def _judged(
    scenario: Scenario, ended: Ended, exchanges: Sequence[Exchange], complaints: Sequence[str]
) -> str:
    """Return the cell of a run: `ok` and more, or what was wrong."""
    refused = [e.status for e in exchanges if e.status >= 400 and e.method == "POST"]
    if all(answer in ended.output for answer in expected(scenario)):
        end, more = ANSWER, [f"after {status}" for status in refused[:1]]
    elif ended.code is None:
        tries = f"{ended.seconds:.0f} s, requests: {len(exchanges)}"
        return f"ok (waiting: {tries})" if WAITING in scenario.ends else f"silent: {tries}"
    elif ended.code or any(e.status >= 400 for e in exchanges[-1:]):
        end, more = ERROR, [f"{ended.seconds:.0f} s", f"requests: {len(exchanges)}"]
    else:
        return "incomplete"
    if end == ANSWER and scenario.thinking and not scenario.calls and THOUGHT not in ended.output:
        more.append("thoughts not shown")
    if complaints:
        more.append(f"refused upstream: {len(complaints)}")
    note = f" ({', '.join(more)})" if more else ""
    # No fault of an upstream makes a request of the client invalid.
    if end not in scenario.ends or (end == ERROR and 400 in refused):
        return f"error {refused[-1] if refused else ended.code}{note}"
    return f"ok{note}"


def _report(client: Client, scenario: Scenario, result: Result, folder: Path | None) -> None:
    name = f"{client.name} · {scenario.name}"
    print(f"{name}: {result.cell}", file=sys.stderr, flush=True)
    if folder is None or result.ended is None:
        return
    folder.mkdir(parents=True, exist_ok=True)
    shown = {
        **{"result": result.cell, "code": result.ended.code, "seconds": result.ended.seconds},
        **{"output": result.ended.output, "complaints": result.complaints},
        "exchanges": [exchange.shown() for exchange in result.exchanges],
    }
    file = folder / f"{name.replace(' · ', '.').replace(' ', '-')}.json"
    file.write_text(json.dumps(shown, indent=1, ensure_ascii=False), encoding="utf-8")


def _table(scenarios: Sequence[Scenario], rows: dict[Client, list[Result]]) -> str:
    head = ["client", "version", *(scenario.name for scenario in scenarios)]
    lines = [head, ["---"] * len(head)]
    for client, results in rows.items():
        version = client.packages.version(client.package)
        lines.append([client.name, version, *(result.cell for result in results)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


async def _main(args: argparse.Namespace) -> int:
    # As Ctrl-C does: what has been started ends with us.
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    clients = [c for c in CLIENTS if not args.only or c.name in args.only]
    scenarios = [s for s in SCENARIOS if not args.scenario or s.name in args.scenario]
    rows: dict[Client, list[Result]] = {}
    for client in clients:
        try:
            client.packages.install(newest=args.newest)
        except RuntimeError as error:
            print(f"{client.name}: {error}", file=sys.stderr)
            continue
        rows[client] = []
        for scenario in scenarios:
            result = await attempt(client, scenario, args.limit)
            _report(client, scenario, result, args.record)
            rows[client].append(result)
    print(f"{date.today()}\n\n{_table(scenarios, rows)}")
    return int(len(rows) < len(clients) or not all(r.good for row in rows.values() for r in row))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--only", nargs="+", choices=[c.name for c in CLIENTS], metavar="CLIENT")
    names = [s.name for s in SCENARIOS]
    parser.add_argument("--scenario", nargs="+", choices=names, metavar="SCENARIO")
    parser.add_argument("--record", type=Path, metavar="FOLDER")
    parser.add_argument("--limit", type=float, default=LIMIT_S, help="seconds for each command")
    parser.add_argument("--newest", action="store_true", help="install the newest versions again")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(asyncio.run(_main(_arguments())))
