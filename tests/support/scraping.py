"""The samples of a scrape of /metrics."""

from __future__ import annotations

import aiohttp
from processes import Process
from prometheus_client.parser import text_string_to_metric_families as parse

from nexus_gateway.testing.gateway import Served

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def samples_of(text: str, read: object = parse) -> Samples:
    assert callable(read)
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in read(text)
        for sample in family.samples
    }


def sample(samples: Samples, name: str, **labels: str) -> float | None:
    return samples.get((name, frozenset(labels.items())))


async def scrape(served: Served, **headers: str) -> Samples:
    async with served.session.get(served.url + "/metrics", headers=headers) as answer:
        text = await answer.text()
        assert answer.status == 200, text
        return samples_of(text)


async def scrape_process(gateway: Process, session: aiohttp.ClientSession) -> dict[str, float]:
    # A new connection each time: any worker may accept it.
    async with session.get(gateway.url + "/metrics", headers={"Connection": "close"}) as answer:
        lines = [line for line in (await answer.text()).splitlines() if line[0] != "#"]
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}
