"""One scrape of any worker returns the figures of all: real processes."""

from __future__ import annotations

import asyncio
from pathlib import Path

import aiohttp
from fakes import HELLO
from processes import Process, process
from test_workers import until, worker_pids, write

from nexus_gateway.testing.upstream import FakeUpstream

ASKED = 16
SUCCESS = 'nexus_requests_total{endpoint="chat",outcome="success",status="2xx"}'
FIRST_TOKENS = "gen_ai_server_time_to_first_token_seconds_count"


async def scrape(gateway: Process, session: aiohttp.ClientSession) -> dict[str, float]:
    # A new connection each time: any worker may accept it.
    async with session.get(gateway.url + "/metrics", headers={"Connection": "close"}) as answer:
        lines = [line for line in (await answer.text()).splitlines() if line[0] != "#"]
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}


async def test_any_worker_returns_the_figures_of_all(
    upstream: FakeUpstream, tmp_path: Path
) -> None:
    write(tmp_path / ".env", upstream)
    async with process(tmp_path, "--workers", "2") as gateway, aiohttp.ClientSession() as session:
        await worker_pids(gateway)

        async def ask() -> None:
            head = {"Connection": "close"}
            url = gateway.url + "/v1/chat/completions"
            async with session.post(url, json=HELLO, headers=head) as answer:
                assert (await answer.text()).endswith("[DONE]\n\n")

        async def all_return_all() -> bool:
            scrapes = [await scrape(gateway, session) for _ in range(8)]
            firsts = [sum(v for k, v in t.items() if k.startswith(FIRST_TOKENS)) for t in scrapes]
            return [t.get(SUCCESS) for t in scrapes] == firsts == [ASKED] * 8

        await asyncio.gather(*(ask() for _ in range(ASKED)))
        await until(all_return_all)
        samples = await scrape(gateway, session)
        assert samples["nexus_workers"] == 2
        assert samples["process_max_fds"] % 2 == 0
