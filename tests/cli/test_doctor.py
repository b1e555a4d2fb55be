"""`nexus-gateway doctor`: each finding, by simulating its cause."""

from __future__ import annotations

import asyncio
import math
import socket
import sys
from dataclasses import replace
from datetime import UTC, datetime
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from processes import process

from nexus_gateway.cli import main
from nexus_gateway.cli.doctor import (
    BREAKS,
    GOOD,
    HOSTS,
    HURTS,
    Finding,
    Machine,
    installation,
    of_files,
    of_host,
    of_port,
    of_upstreams,
    this_machine,
)
from nexus_gateway.cli.serve import configure
from nexus_gateway.settings import Settings

KEPT = frozenset({"/data"})
NOW_S = 1_800_000_000.0


@pytest.fixture
def stranger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    info = tmp_path / "nexus_gateway-3.1.6.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: nexus-gateway\nVersion: 3.1.6\n")
    monkeypatch.syspath_prepend(str(tmp_path))


@pytest.mark.usefixtures("stranger")
def test_another_projects_distribution_over_ours() -> None:
    (finding,) = installation()
    assert finding.kind == BREAKS
    assert "nexus-gateway 3.1.6 belongs to another project" in finding.text
    assert "pip uninstall nexus-gateway, then install nexus-ai-gateway" in finding.text


def texts(settings: Settings, machine: Machine) -> str:
    return "\n".join(finding.text for finding in of_host(settings, machine))


@pytest.mark.parametrize("host", HOSTS, ids=lambda host: host.name)
def test_a_host_that_kills_too_early(host: Any) -> None:
    machine = Machine({host.mark: "1"}, mounts=KEPT)
    drain = Settings(shutdown_timeout_ms=int(host.grace_s * 1000) + 1000)
    text = f"{host.name} by default kills the gateway {host.grace_s:g} s after SIGTERM"
    assert text in texts(drain, machine)
    assert ("or raise" in texts(drain, machine)) == bool(host.setting)
    assert host.setting in texts(drain, machine)
    if host.grace_s:
        assert "kills" not in texts(Settings(shutdown_timeout_ms=1000), machine)
    if host.grace_variable:
        longer = replace(machine, env={**machine.env, host.grace_variable: "600"})
        assert "kills" not in texts(drain, longer)


@pytest.mark.parametrize("host", HOSTS, ids=lambda host: host.name)
@pytest.mark.parametrize("name", ["LEDGER", "RESPONSE_STORE"])
def test_a_disk_that_is_discarded(host: Any, name: str) -> None:
    machine = Machine({host.mark: "1"}, mounts=KEPT)
    lost = Settings.from_env({name: "sqlite:////var/lib/nexus/file.sqlite3"})
    assert f"{name} is on a disk that {host.name} discards" in texts(lost, machine)
    for kept in ("sqlite:////data/nexus/file.sqlite3", "off"):
        assert "disk" not in texts(Settings.from_env({name: kept}), machine)
    for variable in host.volumes:
        mounted = replace(machine, env={**machine.env, variable: "/var/lib/nexus"})
        assert "disk" not in texts(lost, mounted)


@pytest.mark.parametrize("host", HOSTS, ids=lambda host: host.name)
def test_an_address_that_no_host_reaches(host: Any) -> None:
    machine = Machine({host.mark: "1"}, mounts=KEPT)
    for local in ("127.0.0.1", "localhost", "127.0.0.1,::1"):
        text = f"nothing outside of this {host.name} container reaches {local}: set HOST"
        assert text in texts(Settings(host=local), machine)
    for public in ("0.0.0.0", "::", "127.0.0.1,::"):
        assert "outside" not in texts(Settings(host=public), machine)


def test_a_laptop_keeps_its_disk_and_may_be_closed() -> None:
    assert [*of_host(Settings(ledger="/srv/ledger.sqlite3"), Machine({}))] == []


@pytest.mark.parametrize("name", ["LEDGER", "RESPONSE_STORE"])
def test_a_file_that_cannot_be_written(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a-file").touch()
    for wrong in ("a-file/ledger.sqlite3", "."):
        settings = Settings.from_env({name: f"sqlite:///{tmp_path}/{wrong}"})
        (finding,) = of_files(settings)
        assert finding.kind == HURTS
        assert finding.text.startswith(f"{name} is {tmp_path}")
    for path in ("a-file", "new/folder/ledger.sqlite3"):
        settings = Settings.from_env({name: f"sqlite:///{tmp_path}/{path}"})
        assert [*of_files(settings)] == []
    monkeypatch.setattr("os.access", lambda path, mode: path != tmp_path)
    assert [finding.kind for finding in of_files(settings)] == [HURTS]
    for none in ("off", ""):
        assert [*of_files(Settings.from_env({name: none}))] == []


def test_too_little_memory_for_the_workers() -> None:
    machine = Machine({}, memory=200 * 2**20)
    (finding,) = of_host(Settings(web_concurrency=4), machine)
    assert finding.kind == BREAKS
    assert "4 worker(s) need about 256 MiB" in finding.text
    assert "WEB_CONCURRENCY" in finding.text
    assert [*of_host(Settings(web_concurrency=3), machine)] == []


def test_few_open_files() -> None:
    (finding,) = of_host(Settings(), Machine({}, files=256))
    assert finding.kind == HURTS
    assert "256 files" in finding.text
    assert [*of_host(Settings(), Machine({}, files=1024))] == []


def test_a_port_that_is_taken() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        (finding,) = of_port(Settings(port=port))
    assert finding == Finding(
        BREAKS,
        f"cannot listen on 127.0.0.1 port {port}: address already in use. "
        "End what listens there, or set PORT.",
    )
    assert [*of_port(Settings(port=port))] == []


def test_an_address_that_this_machine_does_not_have() -> None:
    (finding,) = of_port(Settings(host="192.0.2.1", port=3000))
    assert finding.kind == BREAKS
    assert finding.text.endswith("Set HOST or PORT.")


async def test_a_port_that_the_gateway_itself_has(tmp_path: Path) -> None:
    async with process(tmp_path, "--host", "0.0.0.0", LEDGER="off") as gateway:
        port = int(gateway.url.rpartition(":")[2])
        for host in ("0.0.0.0", "127.0.0.1"):
            (finding,) = await asyncio.to_thread(list, of_port(Settings(host=host, port=port)))
            assert finding == Finding(GOOD, f"a gateway answers on port {port} already.")


async def test_a_port_that_another_server_has(aiohttp_server: Any) -> None:
    server = await aiohttp_server(web.Application())
    (finding,) = await asyncio.to_thread(list, of_port(Settings(port=server.port)))
    assert finding.kind == BREAKS


class Upstream:
    """An upstream that lists models."""

    def __init__(self) -> None:
        self.status = 200
        self.ids = ["a-model"]
        self.date_s = NOW_S
        self.more: dict[str, bool] = {}
        self.keys: list[str] = []

    async def models(self, request: web.Request) -> web.Response:
        self.keys.append(request.headers.get("Authorization", ""))
        date = format_datetime(datetime.fromtimestamp(self.date_s, UTC), usegmt=True)
        return web.json_response(
            {"data": [{"id": id} for id in self.ids], **self.more},
            status=self.status,
            headers={"Date": date},
        )


async def found(
    aiohttp_server: Any, upstream: Upstream, name: str = "GROQ", **env: str
) -> list[Finding]:
    app = web.Application()
    app.router.add_get("/v1/models", upstream.models)
    server = await aiohttp_server(app)
    address = {f"{name}_BASE_URL": str(server.make_url("/v1")), f"{name}_MODEL": "a-model", **env}
    settings, pool = configure({f"{name}_KEY_1": "groq-key-secret", **address}, demo=False)
    return await of_upstreams(settings, pool, lambda: NOW_S)


async def test_all_is_well(aiohttp_server: Any) -> None:
    upstream = Upstream()
    assert await found(aiohttp_server, upstream) == []
    assert upstream.keys == ["Bearer groq-key-secret"]


@pytest.mark.parametrize("ids", [["models/a-model"], []])
async def test_a_list_with_prefixes_and_an_empty_one_are_no_finding(
    aiohttp_server: Any, ids: list[str]
) -> None:
    upstream = Upstream()
    upstream.ids = ids
    assert await found(aiohttp_server, upstream) == []


async def test_a_model_that_is_not_listed(aiohttp_server: Any) -> None:
    (finding,) = await found(aiohttp_server, Upstream(), GROQ_MODEL="retired")
    text = "Groq (Key #1): the upstream does not list the model retired."
    assert finding == Finding(HURTS, text)


async def test_the_name_of_a_deployment_is_not_the_name_of_a_model(aiohttp_server: Any) -> None:
    upstream = Upstream()
    assert await found(aiohttp_server, upstream, "AZURE", AZURE_MODEL="mine") == []
    upstream.status = 401
    (finding,) = await found(aiohttp_server, upstream, "AZURE", AZURE_MODEL="mine")
    assert finding.kind == BREAKS


async def test_a_model_that_may_be_on_the_next_page(aiohttp_server: Any) -> None:
    upstream = Upstream()
    upstream.more = {"has_more": True}
    assert await found(aiohttp_server, upstream, GROQ_MODEL="retired") == []


@pytest.mark.parametrize(
    ("behind_s", "text"), [(600, "10 minutes behind"), (-300, "5 minutes ahead of")]
)
async def test_a_wrong_clock(aiohttp_server: Any, behind_s: float, text: str) -> None:
    upstream = Upstream()
    upstream.date_s += behind_s
    (finding,) = await found(aiohttp_server, upstream)
    assert finding.kind == HURTS
    assert text in finding.text


async def test_a_key_that_is_refused(aiohttp_server: Any) -> None:
    upstream = Upstream()
    upstream.status = 401
    (finding,) = await found(aiohttp_server, upstream)
    assert finding == Finding(BREAKS, "Groq (Key #1): the key is refused (401).")


async def test_an_upstream_that_does_not_answer() -> None:
    env = {"GROQ_KEY_1": "groq-key-secret", "GROQ_BASE_URL": "http://127.0.0.1:1/v1"}
    (finding,) = await of_upstreams(*configure(env, demo=False), lambda: NOW_S)
    assert finding.kind == HURTS
    assert "127.0.0.1 did not answer" in finding.text


@pytest.mark.parametrize(
    ("env", "code", "text"),
    [
        ({}, 0, "hurts   no API key configured; serving the built-in demo"),
        ({"HOST": "::", "GROQ_KEY_1": "a-key-secret"}, 0, "GATEWAY_KEYS is not set"),
        ({"HOST": "::", "GATEWAY_KEYS": "a-caller-secret"}, 0, "ADMIN_TOKEN is not set"),
        ({"PORT": "x"}, 1, "breaks  PORT"),
        ({"GROQ_KEY_1": "one-key-secret", "GROQ_KEY_2": "one-key-secret"}, 0, "is the same key as"),
        ({"HTTPS_PROXY": "http://proxy:8080"}, 0, "HTTPS_PROXY is set, but not used"),
        ({"GROQ_KEYS": "a-key-secret"}, 0, "GROQ_KEYS is not read"),
    ],
)
def test_the_command(
    env: dict[str, str],
    code: int,
    text: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("nexus_gateway.cli.doctor.installation", lambda: ())
    monkeypatch.setattr("nexus_gateway.cli.doctor.this_machine", lambda env: Machine(env))
    monkeypatch.chdir(tmp_path)
    for name, value in {"PORT": "0", **env}.items():
        monkeypatch.setenv(name, value)
    assert main(["doctor", "--offline"]) == code
    out = capsys.readouterr().out
    assert text in out
    assert "secret" not in out


@pytest.mark.skipif(sys.platform != "linux", reason="what the checks read there")
def test_this_machine_is_read() -> None:
    machine = this_machine({"DYNO": "web.1"})
    assert 0 < machine.memory < math.inf
    assert machine.files > 2
    assert machine.host is HOSTS[2]
