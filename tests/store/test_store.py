"""Both stores: who gets what, for how long, and how much is kept."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import stat
import tempfile
from collections.abc import AsyncIterator, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from clock import FakeClock
from hypothesis import given
from hypothesis import strategies as st

from nexus_gateway.errors import StoreUnavailable
from nexus_gateway.store.base import ENTRY_BYTES, ITEM_BYTES, StoredResponse
from nexus_gateway.store.memory import MemoryStore
from nexus_gateway.store.sqlite import ResponseFile, SQLiteStore

LIMIT, TTL_S = 100_000, 60.0
Store = MemoryStore | SQLiteStore


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture(params=["memory", "sqlite"])
async def store(
    request: pytest.FixtureRequest, tmp_path: Path, clock: FakeClock
) -> AsyncIterator[Store]:
    made: Store = MemoryStore(LIMIT, TTL_S, clock)
    if request.param == "sqlite":
        made = SQLiteStore(str(tmp_path / "responses.sqlite3"), LIMIT, TTL_S, clock)
    yield made
    await made.close()


def stored(id: str, size: int = 10) -> StoredResponse:
    return StoredResponse(id, b"x" * size, id.encode())


async def test_a_response_is_found_by_its_id_and_by_its_items(store: Store) -> None:
    await store.put("a", stored("r1"), ["i1", "i2"])
    await store.put("a", stored("r2"), ["i2", "i3"])
    assert await store.get("a", "r1") == stored("r1")
    assert await store.get("a", "r3") is None
    found = await store.find("a", ["i1", "i2", "i3", "i4"])
    assert {id: response.id for id, response in found.items()} == {
        "i1": "r1",
        "i2": "r2",
        "i3": "r2",
    }


@pytest.mark.parametrize("other", ["b", ""])
async def test_nobody_else_sees_or_removes_a_response(store: Store, other: str) -> None:
    await store.put("a", stored("r"), ["i"])
    assert await store.get(other, "r") is None
    assert await store.find(other, ["i"]) == {}
    assert await store.delete(other, "r") is False
    await store.put(other, stored("r", 20), ["i"])
    assert (await store.find("a", ["i"]))["i"] == stored("r")
    assert await store.get(other, "r") == stored("r", 20)


async def test_a_response_that_is_deleted_is_gone_with_its_items(store: Store) -> None:
    await store.put("a", stored("r1"), ["i"])
    await store.put("a", stored("r2"), ["j"])
    assert [await store.delete("a", "r1") for _ in range(2)] == [True, False]
    assert (await store.get("a", "r1"), await store.find("a", ["i"])) == (None, {})
    assert await store.get("a", "r2") == stored("r2")


async def test_a_response_expires(store: Store, clock: FakeClock) -> None:
    await store.put("a", stored("r1"), ["i"])
    clock.advance(TTL_S - 1)
    await store.put("a", stored("r2"), ["j"])
    assert await store.get("a", "r1") == stored("r1")
    clock.advance(1)
    assert await store.get("a", "r1") is None
    assert set(await store.find("a", ["i", "j"])) == {"j"}
    assert await store.delete("a", "r1") is False
    assert await store.get("a", "r2") == stored("r2")


async def test_the_oldest_gives_way(store: Store) -> None:
    third = LIMIT // 3 - ENTRY_BYTES - ITEM_BYTES - 100
    for number in range(4):
        await store.put("a", stored(f"r{number}", third), [f"i{number}"])
    kept = [await store.get("a", f"r{number}") is not None for number in range(4)]
    assert kept == [False, True, True, True]
    assert set(await store.find("a", [f"i{n}" for n in range(4)])) == {"i1", "i2", "i3"}
    await store.put("a", stored("r4", LIMIT), ["i4"])
    assert await store.get("a", "r4") is None
    assert await store.get("a", "r3") is not None


async def test_a_response_replaces_one_with_its_id(store: Store) -> None:
    await store.put("a", stored("r"), ["i"])
    await store.put("a", stored("r", 20), ["j"])
    assert await store.get("a", "r") == stored("r", 20)
    assert set(await store.find("a", ["i", "j"])) == {"j"}


OWNERS, IDS, ITEMS = st.sampled_from("ab"), st.sampled_from("rstu"), st.sampled_from("ijkl")
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("put"), OWNERS, IDS, st.integers(0, 6000), st.lists(ITEMS, unique=True)),
        st.tuples(st.just("delete"), OWNERS, IDS),
        st.tuples(st.just("wait"), st.floats(0, 40)),
    ),
    max_size=30,
)


def run(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """Run a coroutine of the memory's, which never waits."""
    with pytest.raises(StopIteration) as end:
        coroutine.send(None)
    return end.value.value


@given(STEPS)
def test_both_keep_the_same_and_never_more_than_the_limit(steps: list[tuple[Any, ...]]) -> None:
    """SQLite's file and the memory are each other's model."""
    clock, limit = FakeClock(), 10_000
    memory = MemoryStore(limit, TTL_S, clock)
    with (
        tempfile.TemporaryDirectory() as folder,
        contextlib.closing(
            ResponseFile(os.path.join(folder, "responses"), limit, TTL_S, clock)
        ) as file,
    ):
        for step in steps:
            if step[0] == "wait":
                clock.advance(step[1])
            elif step[0] == "delete":
                _, owner, id = step
                assert run(memory.delete(owner, id)) == file.delete(owner, id)
            else:
                _, owner, id, size, items = step
                response = stored(id, size)
                run(memory.put(owner, response, items))
                file.put(owner, response, items)
            assert memory.size == sum(e.size for e in memory._entries.values()) <= limit
            assert set(memory._response_of.values()) <= set(memory._entries)
            rows = file._connection.execute("SELECT SUM(size) FROM responses").fetchone()
            assert (rows[0] or 0) <= limit
            for owner in "ab":
                assert run(memory.find(owner, "ijkl")) == file.find(owner, "ijkl")
                for id in "rstu":
                    assert run(memory.get(owner, id)) == file.get(owner, id)


@asynccontextmanager
async def opened(*paths: Path) -> AsyncIterator[list[SQLiteStore]]:
    async with AsyncExitStack() as closing:
        stores = [SQLiteStore(str(path), LIMIT, TTL_S) for path in paths]
        for store in stores:
            await store.open()
            closing.push_async_callback(store.close)
        yield stores


async def test_a_file_is_shared_and_outlives_its_store(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "responses.sqlite3"
    async with opened(path, path) as (one, other):
        await one.put("a", stored("r"), ["i"])
        assert await other.get("a", "r") == stored("r")
        assert await other.delete("a", "r")
        assert await one.get("a", "r") is None
        await one.put("a", stored("s"), ["i"])
    async with opened(path) as (later,):
        assert await later.find("a", ["i"]) == {"i": stored("s")}
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize("kind", ["a folder", "no database", "another database", "a newer one"])
async def test_a_file_that_is_not_ours_is_left_alone(
    tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "responses.sqlite3"
    if kind == "a folder":
        path.mkdir()
    elif kind == "no database":
        path.write_bytes(b"something else" * 1000)
    else:
        connection = sqlite3.connect(path)
        connection.execute("CREATE TABLE others (a)")
        connection.execute(f"PRAGMA user_version = {99 if kind == 'a newer one' else 0}")
        connection.commit()
        connection.close()
    before = None if path.is_dir() else path.read_bytes()
    async with opened(path) as (store,):
        assert "cannot be used" in caplog.text
        with pytest.raises(StoreUnavailable):
            await store.put("a", stored("r"), [])
        with pytest.raises(StoreUnavailable):
            await store.get("a", "r")
    assert before is None or path.read_bytes() == before


async def test_a_store_returns_once_its_file_can_be_used(tmp_path: Path) -> None:
    path = tmp_path / "responses.sqlite3"
    path.mkdir()
    async with opened(path) as (store,):
        path.rmdir()
        await store.put("a", stored("r"), [])
        assert await store.get("a", "r") == stored("r")


async def test_what_was_deleted_is_no_longer_in_the_file(tmp_path: Path) -> None:
    path = tmp_path / "responses.sqlite3"
    async with opened(path) as (store,):
        await store.put("a", StoredResponse("r", b"a secret plan" * 20, b"{}"), [])
        await store.delete("a", "r")
    assert b"a secret plan" not in path.read_bytes()
