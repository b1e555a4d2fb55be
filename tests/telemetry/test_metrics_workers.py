"""One scrape of any worker returns the figures of all: real processes."""

from __future__ import annotations

import asyncio
from pathlib import Path

import aiohttp
from fakes import HELLO
from processes import process, worker_pids, write_env
from scraping import scrape_process
from waiting import until_async

from nexus_gateway.testing.upstream import FakeUpstream

ASKED = 16
SUCCESS = 'nexus_requests_total{endpoint="chat",outcome="success",status="2xx"}'
FIRST_TOKENS = "gen_ai_server_time_to_first_token_seconds_count"


async def test_any_worker_returns_the_figures_of_all(
    upstream: FakeUpstream, tmp_path: Path
) -> None:
    write_env(tmp_path / ".env", upstream)
    async with process(tmp_path, "--workers", "2") as gateway, aiohttp.ClientSession() as session:
        await worker_pids(gateway)

        async def ask() -> None:
            head = {"Connection": "close"}
            url = gateway.url + "/v1/chat/completions"
            async with session.post(url, json=HELLO, headers=head) as answer:
                assert (await answer.text()).endswith("[DONE]\n\n")

        async def all_return_all() -> bool:
            scrapes = [await scrape_process(gateway, session) for _ in range(8)]
            firsts = [sum(v for k, v in t.items() if k.startswith(FIRST_TOKENS)) for t in scrapes]
            return [t.get(SUCCESS) for t in scrapes] == firsts == [ASKED] * 8

        await asyncio.gather(*(ask() for _ in range(ASKED)))
        await until_async(all_return_all)
        samples = await scrape_process(gateway, session)
        assert samples["nexus_workers"] == 2
        assert samples["process_max_fds"] % 2 == 0
