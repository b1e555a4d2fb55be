"""The ledger: its rows, what it omits, and faults of its file."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
import sqlite3
import sys
import time
from collections.abc import Callable
from pathlib import Path

import aiohttp
import pytest
from fakes import HELLO, KEYS, make_instance, serving
from processes import process
from records import record

from nexus_gateway.proxy.record import RequestRecord
from nexus_gateway.secret import Secret
from nexus_gateway.store import database
from nexus_gateway.store.database import DatabaseRefused
from nexus_gateway.telemetry import ledger, ledger_writer
from nexus_gateway.telemetry.ledger import (
    VERSION,
    LedgerFile,
    ask,
    is_transient,
    prune,
)
from nexus_gateway.telemetry.ledger_writer import LedgerWriter, Row, row_of
from nexus_gateway.telemetry.pricing import Spent
from nexus_gateway.telemetry.usage import FIGURES, UsageQuery
from nexus_gateway.testing.reply import Reply
from nexus_gateway.testing.upstream import FakeUpstream
from nexus_gateway.web.handlers.events import figures

ADMIN = {"Authorization": "Bearer an-admin"}


def rows(path: Path, columns: str = "id") -> list[tuple[object, ...]]:
    connection = sqlite3.connect(path)
    try:
        return connection.execute(f"SELECT {columns} FROM requests ORDER BY rowid").fetchall()
    finally:
        connection.close()


def has_rows(path: Path, count: int) -> bool:
    """Return whether a ledger, which may not exist yet, has this many rows."""
    try:
        return path.exists() and len(rows(path)) >= count
    except sqlite3.OperationalError:
        return False


def content(path: Path) -> bytes:
    return path.read_bytes() if path.is_file() else b""


def is_private(path: Path) -> bool:
    return os.name != "posix" or path.stat().st_mode & 0o077 == 0


def spoil_all(path: Path) -> None:
    path.write_bytes(b"no database " * 1000)
    for other in path.parent.glob("*-*"):
        other.unlink()


def count(path: Path) -> int:
    answer = ask(str(path), UsageQuery())
    return 0 if answer is None else dict(zip(FIGURES, answer.total, strict=True))["requests"]


def until(condition: Callable[[], object]) -> None:
    end_s = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end_s
        time.sleep(0.005)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger_writer, "GATHER_S", 0.01)
    monkeypatch.setattr(ledger_writer, "RETRY_S", 0.01)
    monkeypatch.setattr(ledger, "BUSY_S", 0.01)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "ledger.sqlite3"


@pytest.fixture
def writer(path: Path, quick: None):
    writer = LedgerWriter(str(path))
    yield writer
    writer.close()


def started(writer: LedgerWriter, path: Path) -> LedgerWriter:
    writer.start()
    until(lambda: path.exists() and ask(str(path), UsageQuery()) is not None)
    return writer


async def test_a_request_is_one_row_without_secrets(upstream: FakeUpstream, path: Path) -> None:
    upstream.defaults[KEYS[0]] = Reply(status=500)
    keys = (Secret("a-caller"), Secret("another"))
    async with serving(
        make_instance(upstream), make_instance(upstream, 2), gateway_keys=keys, ledger=str(path)
    ) as served:
        head = {"X-Routing-Mode": "round-robin", "Authorization": "Bearer another"}
        body = {**HELLO, "model": "fake", "stream": True}
        body["stream_options"] = {"include_usage": True}
        await served.chat(body, headers={**head, "X-Request-Id": "mine"})
    columns = "id, key, endpoint, asked_model, stream, instance, provider, model, attempts"
    assert rows(path, columns) == [
        ("mine", "key-2", "chat", "fake", 1, "Fake (Key #2)", "fake", "fake-large", 2)
    ]
    ((prompt, completion, cost, status, outcome, first_ms, total_ms, ended_s),) = rows(
        path,
        "prompt_tokens, completion_tokens, cost_usd, status, outcome, first_ms, total_ms, ended_s",
    )
    assert (cost, status, outcome) == (None, 200, "success")
    assert prompt
    assert completion
    assert 0 < float(str(first_ms)) <= float(str(total_ms))
    assert abs(float(str(ended_s)) - time.time()) < 60
    content_of_files = b"".join(file.read_bytes() for file in path.parent.iterdir())
    for secret in (*KEYS, "a-caller", "another", "Hello"):
        assert secret.encode() not in content_of_files
    assert is_private(path)


async def test_without_a_ledger_nothing_is_recorded(upstream: FakeUpstream) -> None:
    async with serving(make_instance(upstream)) as served:
        assert not any("ledger" in str(observer) for observer in served.gateway.recorder.observers)
        async with served.session.get(served.url + "/v1/usage") as response:
            assert response.status == 404
            assert (await response.json())["error"]["code"] == "ledger_off"


def test_any_text_of_a_caller_can_be_stored(writer: LedgerWriter, path: Path) -> None:
    started(writer, path).observe(record(asked_model="half \ud83d", model="\x00ü"))
    until(lambda: count(path))
    assert rows(path, "asked_model, model") == [("half ?", "\x00ü")]


def test_a_record_that_cannot_be_stored_loses_no_other(
    writer: LedgerWriter, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    started(writer, path).observe(record(id="\ud83d"))
    until(lambda: "1 are lost" in caplog.text)
    writer.observe(record(id="next"))
    until(lambda: count(path))
    assert rows(path) == [("next",)]


def test_a_lost_record_with_a_known_cost_counts_as_spent_once(
    writer: LedgerWriter, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    billed = record(id="\ud83d", provider="openrouter", billed_usd=1.0)
    started(writer, path).observe(billed)
    until(lambda: "1 are lost" in caplog.text)
    assert writer.spent({}) == Spent(1.0, priced=1.0)


def test_a_dropped_record_has_no_known_cost(writer: LedgerWriter, path: Path) -> None:
    started(writer, path)._limit = 0
    writer.observe(record(provider="openrouter", billed_usd=1.0))
    assert writer.spent({}) == Spent(None, priced=0.0)


@pytest.mark.parametrize(
    ("fails", "spent"),
    [("price", Spent(2.0, priced=2 / 3)), ("row", Spent(3.0, priced=1.0))],
)
def test_a_record_that_cannot_become_a_row_is_lost_alone_and_counted(
    writer: LedgerWriter,
    path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    fails: str,
    spent: Spent,
) -> None:
    def cost_usd(record_: RequestRecord) -> float:
        if (fails, record_.id) == ("price", "bad"):
            raise ArithmeticError("no such price")
        return 1.0

    def failing_row_of(
        record_: RequestRecord, cost_usd: float | None, saved_usd: float | None
    ) -> Row:
        if (fails, record_.id) == ("row", "bad"):
            raise ValueError("no such row")
        return row_of(record_, cost_usd, saved_usd)

    monkeypatch.setattr(writer._prices, "cost_usd", cost_usd)
    monkeypatch.setattr(ledger_writer, "row_of", failing_row_of)
    for id in ("before", "bad", "after"):
        writer.observe(record(id=id))
    started(writer, path)
    until(lambda: count(path) == 2)
    assert rows(path) == [("before",), ("after",)]
    assert writer.spent({}) == spent
    until(lambda: "written again" in caplog.text)
    assert f"no such {fails}" in caplog.text
    assert caplog.messages[-1] == "the ledger is written again; 1 requests are lost"


def test_waiting_records_are_written_at_the_end(path: Path) -> None:
    writer = LedgerWriter(str(path))
    writer.start()
    for number in range(1200):
        writer.observe(record(id=str(number)))
    writer.close()
    assert rows(path) == [(str(number),) for number in range(1200)]


def test_a_locked_file_delays_writing(
    writer: LedgerWriter, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "nexus_gateway")
    started(writer, path)
    lock = sqlite3.connect(path, isolation_level=None)
    lock.execute("BEGIN EXCLUSIVE")
    writer.observe(record())
    until(lambda: "locked" in caplog.text)
    writer.observe(record(id="req-2"))
    assert writer.waiting == 2
    lock.execute("COMMIT")
    lock.close()
    until(lambda: count(path) == 2)
    until(lambda: "written again" in caplog.text)
    assert rows(path) == [("req-1",), ("req-2",)]
    assert caplog.text.count("is behind") == 1


async def test_a_locked_file_fails_neither_start_nor_request_nor_shutdown(
    upstream: FakeUpstream, path: Path, caplog: pytest.LogCaptureFixture, quick: None
) -> None:
    path.parent.mkdir()
    lock = sqlite3.connect(path, isolation_level=None)
    lock.execute("BEGIN EXCLUSIVE")
    async with serving(make_instance(upstream), ledger=str(path)) as served:
        assert (await served.chat())[0] == 200
    lock.execute("COMMIT")
    lock.close()
    assert "1 requests were not written to the ledger" in caplog.text
    assert count(path) == 0


async def test_a_full_disk_fails_no_request(
    upstream: FakeUpstream,
    path: Path,
    caplog: pytest.LogCaptureFixture,
    quick: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    full = ("PRAGMA max_page_count = 4",)
    monkeypatch.setattr(database, "SETUP", (*database.SETUP, *full))
    async with serving(make_instance(upstream), ledger=str(path)) as served:
        for _ in range(40):
            assert (await served.chat(headers={"X-Request-Id": "x" * 64}))[0] == 200
        while "full" not in caplog.text:
            assert (await served.chat(headers={"X-Request-Id": "x" * 64}))[0] == 200
    assert "were not written to the ledger" in caplog.text


def test_records_over_the_limit_are_counted_as_lost(
    writer: LedgerWriter,
    path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(writer, "_limit", 2)
    for number in range(5):
        writer.observe(record(id=str(number)))
    started(writer, path)
    until(lambda: count(path) == 2)
    until(lambda: "3 are lost" in caplog.text)


def test_lost_records_are_logged_once_when_writing_resumes(
    writer: LedgerWriter,
    path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO", "nexus_gateway")
    started(writer, path)
    lock = sqlite3.connect(path, isolation_level=None)
    lock.execute("BEGIN IMMEDIATE")
    writer.observe(record())
    until(lambda: "cannot be written" in caplog.text)
    monkeypatch.setattr(writer, "_limit", 0)
    for _ in range(7):
        writer.observe(record())
    monkeypatch.setattr(writer, "_limit", 10)
    lock.execute("COMMIT")
    lock.close()
    until(lambda: "written again" in caplog.text)
    assert caplog.messages[-1] == "the ledger is written again; 7 requests are lost"
    writer.observe(record(id="req-2"))
    until(lambda: count(path) == 2)
    assert "requests end too fast" not in caplog.text


def test_a_removed_file_is_created_again(
    writer: LedgerWriter, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    started(writer, path).observe(record())
    until(lambda: count(path))
    path.rename(path.with_name("old"))
    for name in ("ledger.sqlite3-wal", "ledger.sqlite3-shm"):
        path.with_name(name).unlink(missing_ok=True)
    writer.observe(record(id="req-2"))
    until(lambda: count(path))
    assert rows(path) == [("req-2",)]
    writer.observe(record(id="req-3"))
    until(lambda: count(path) == 2)
    assert caplog.messages == [f"the ledger {path} was moved or removed; starting a new one"]


def foreign(path: Path) -> None:
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE theirs (x)")
    connection.close()


def newer(path: Path) -> None:
    connection = sqlite3.connect(path)
    connection.execute(f"PRAGMA user_version = {VERSION + 1}")
    connection.close()


OLDEST = """
    CREATE TABLE requests (
        ended_s REAL NOT NULL, id TEXT NOT NULL, key TEXT NOT NULL, endpoint TEXT NOT NULL,
        asked_model TEXT, stream INTEGER NOT NULL,
        instance TEXT NOT NULL, provider TEXT NOT NULL, model TEXT NOT NULL,
        prompt_tokens INTEGER, cached_tokens INTEGER, completion_tokens INTEGER,
        reasoning_tokens INTEGER, cost_usd REAL,
        first_ms REAL NOT NULL, total_ms REAL NOT NULL, attempts INTEGER NOT NULL,
        status INTEGER NOT NULL, outcome TEXT NOT NULL
    );
    CREATE INDEX requests_by_time ON requests (ended_s);
    PRAGMA user_version = 1;
"""


def oldest(path: Path) -> None:
    """Write a file of the first version, with one request."""
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.executescript(OLDEST)
        values = row_of(record(id="old"), 0.5)[:19]
        connection.execute(f"INSERT INTO requests VALUES ({', '.join('?' * 19)})", values)
        connection.commit()


@pytest.mark.parametrize("first", ["write", "ask"])
def test_a_file_of_the_first_version_is_upgraded(path: Path, first: str) -> None:
    path.parent.mkdir(exist_ok=True)
    oldest(path)
    if first == "ask":
        assert ask(str(path), UsageQuery()) is not None
    for id in ("new", "newer"):
        with contextlib.closing(LedgerFile(str(path))) as file:
            file.write([row_of(record(id=id, affinity="moved"), 0.5, 0.25)])
    assert rows(path, "id, affinity, saved_usd") == [
        ("old", "none", None),
        ("new", "moved", 0.25),
        ("newer", "moved", 0.25),
    ]
    report = ask(str(path), UsageQuery())
    assert report is not None
    total = dict(zip(FIGURES, report.total, strict=True))
    assert (total["requests"], total["moved"], total["saved_usd"]) == (3, 2, 0.5)


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda path: path.write_bytes(b"no database " * 1000), "not a database"),
        (foreign, "no ledger"),
        (newer, "newer gateway"),
        (lambda path: path.mkdir(), "unable to open"),
    ],
    ids=["text", "foreign", "newer", "folder"],
)
async def test_an_unusable_file_is_not_changed(
    upstream: FakeUpstream,
    path: Path,
    caplog: pytest.LogCaptureFixture,
    spoil: Callable[[Path], object],
    reason: str,
) -> None:
    path.parent.mkdir()
    spoil(path)
    before = content(path)
    async with serving(make_instance(upstream), ledger=str(path)) as served:
        await asyncio.to_thread(until, lambda: caplog.messages)
        assert (await served.chat())[0] == 200
        async with served.session.get(served.url + "/v1/usage") as response:
            assert response.status == 503, "zeros would be wrong"
            error = (await response.json())["error"]
        assert error["code"] == "ledger_unreadable"
        assert "log" in error["message"]
        feed = served.gateway.feed
        values = figures(served.gateway, feed)
        assert (values["spentUsd"], values["priced"]) == (None, None)
    (line,) = caplog.messages
    assert line.startswith(f"no ledger is kept: {path} (")
    assert reason in line
    assert "LEDGER" in line
    assert before == content(path)


def test_an_unusable_folder_is_logged_once(
    tmp_path: Path, quick: None, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    writer = LedgerWriter(str(tmp_path / "file" / "ledger.sqlite3"))
    writer.start()
    until(lambda: caplog.messages)
    writer.observe(record())
    writer.close()
    assert writer.waiting == 0
    assert len(caplog.messages) == 1


def test_several_writers_share_a_file(path: Path, quick: None) -> None:
    """Concurrent creation and concurrent writes lose nothing."""
    writers = [LedgerWriter(str(path)) for _ in range(4)]
    for writer in writers:
        writer.start()
    for number in range(80):
        writers[number % 4].observe(record(id=str(number)))
        time.sleep(0.001)
    until(lambda: not any(writer.waiting for writer in writers) and count(path) == 80)
    for writer in writers:
        writer.close()
    assert {id for (id,) in rows(path)} == {str(number) for number in range(80)}


def test_permanent_errors_are_not_transient() -> None:
    assert not is_transient(OSError())
    assert not is_transient(DatabaseRefused())
    assert not is_transient(sqlite3.OperationalError())


def test_pruning_deletes_older_rows(path: Path) -> None:
    assert prune(str(path), 100.0) == 0
    file = LedgerFile(str(path))
    row_at = (row_of(record(ended_s=at), None) for at in (1.0, 2.0, 3.0))
    file.write(list(row_at))
    file.close()
    assert prune(str(path), 3.0) == 2
    assert rows(path, "ended_s") == [(3.0,)]


async def test_the_usage_endpoint_reports_the_ledger(upstream: FakeUpstream, path: Path) -> None:
    token = Secret("an-admin")
    async with serving(make_instance(upstream), admin_token=token, ledger=str(path)) as served:

        async def usage(query: str = "", status: int = 200) -> dict[str, object]:
            url = f"{served.url}/v1/usage{query}"
            async with served.session.get(url, headers=ADMIN) as response:
                assert response.status == status
                report: dict[str, object] = await response.json()
                return report

        async with served.session.get(served.url + "/v1/usage") as response:
            assert response.status == 401
        await asyncio.to_thread(until, path.exists)
        assert (await usage())["data"] == []
        await served.chat(stream=False)
        await asyncio.to_thread(until, lambda: count(path))
        report = await usage("?by=model&since=1h")
        assert (report["object"], report["by"], report["timezone"]) == ("usage", "model", "UTC")
        assert [row["model"] for row in report["data"]] == ["fake-large"]  # type: ignore[attr-defined]
        assert (await usage("?until=1h"))["data"] == []
        for query, word in (
            ("by=x", "by"),
            ("since=x", "since"),
            ("until=x", "until"),
            ("a=", "a"),
        ):
            error = (await usage("?" + query, 400))["error"]
            assert error["param"] == word  # type: ignore[index]
        spoil_all(path)
        error = (await usage(status=503))["error"]
        assert error["code"] == "ledger_unreadable"  # type: ignore[index]


async def command(*arguments: str, cwd: Path, **env: str) -> str:
    done = await asyncio.create_subprocess_exec(
        *[sys.executable, "-m", "nexus_gateway", *arguments],
        cwd=cwd,
        env={**os.environ, **env},
        stdout=asyncio.subprocess.PIPE,
    )
    out, _ = await done.communicate()
    assert done.returncode == 0
    return out.decode()


async def test_a_killed_gateway_has_written_all_but_the_last_second(tmp_path: Path) -> None:
    env = {"LEDGER": "sqlite:///ledger.db", "GROQ_KEY_1": "a-groq-key"}
    async with (
        FakeUpstream() as upstream,
        process(tmp_path, GROQ_BASE_URL=upstream.base_url, **env) as gateway,
        aiohttp.ClientSession() as session,
    ):
        for _ in range(5):
            await session.post(gateway.url + "/v1/chat/completions", json=HELLO)
        async with asyncio.timeout(30):
            while not has_rows(tmp_path / "ledger.db", 5):  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        gateway.signal(signal.SIGKILL)
        await gateway.exit_code()
    report = json.loads(
        await command("usage", "--format", "json", cwd=tmp_path, LEDGER=env["LEDGER"])
    )
    assert report["total"]["requests"] == 5
    assert "Groq (Key #1)" in str(report["data"])


async def test_a_stopped_gateway_has_written_all(tmp_path: Path) -> None:
    async with (
        process(tmp_path, "--demo", LEDGER="", XDG_STATE_HOME=str(tmp_path)) as gateway,
        aiohttp.ClientSession() as session,
    ):
        await session.post(gateway.url + "/v1/chat/completions", json={"messages": 1})
        gateway.signal(signal.SIGTERM)
        assert await gateway.exit_code() == 0
    assert rows(tmp_path / "nexus-gateway" / "ledger.sqlite3", "status") == [(400,)]
