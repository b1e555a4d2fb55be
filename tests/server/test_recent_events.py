"""Each ended request and each time to the first token reaches every worker once."""

from __future__ import annotations

import itertools
import json
from typing import Any

from clock import FakeClock
from fakes import make_instance
from hypothesis import given
from hypothesis import strategies as st
from records import ended

from nexus_gateway.routing.health import WINDOW
from nexus_gateway.routing.pool import Pool
from nexus_gateway.secret import Secret
from nexus_gateway.server.sync import EventBoard, InstanceSync, RecentEvents
from nexus_gateway.telemetry.feed import AT_ONCE, Feed
from nexus_gateway.telemetry.shared import (
    MOST_REQUESTS,
    MOST_TROUBLED,
    Ended,
    ended_ms,
    is_troubled,
    to_keep,
)

ONE, OTHER, THIRD = 1, 2, 3


def at(*times: int) -> RecentEvents:
    return RecentEvents([request_at(time) for time in times])


def request_at(time: int, *, failed: bool = False, moved: bool = False) -> Ended:
    return {"id": f"req-{time}", "endedAt": time, "failed": failed, "failedOver": moved}


def times(recent: RecentEvents) -> list[int]:
    return [request["endedAt"] for request in recent.requests]


def test_a_request_is_sent_once_and_never_to_its_sender() -> None:
    board = EventBoard()
    board.add(ONE, at(1, 2))
    assert times(board.new_for(OTHER, with_requests=True)) == [1, 2]
    board.add(ONE, at(4))
    board.add(OTHER, at(3))
    assert times(board.new_for(OTHER, with_requests=True)) == [4]
    assert times(board.new_for(ONE, with_requests=True)) == [3]
    assert not any(board.new_for(worker, with_requests=True) for worker in (ONE, OTHER))


def test_a_worker_gets_requests_once_it_has_listeners() -> None:
    board = EventBoard()
    board.add(ONE, at(1))
    assert not board.new_for(OTHER, with_requests=False)
    assert times(board.new_for(OTHER, with_requests=True)) == [1]


def test_the_latest_requests_are_kept_in_any_order_of_arrival() -> None:
    board = EventBoard()
    board.add(ONE, at(*range(1000, 1000 + MOST_REQUESTS - 1)))
    board.add(OTHER, at(*range(MOST_REQUESTS)))
    assert times(board.new_for(THIRD, with_requests=True)) == [
        MOST_REQUESTS - 1,
        *range(1000, 1000 + MOST_REQUESTS - 1),
    ]


def test_failed_requests_are_kept_longer_and_once() -> None:
    every_tenth = [
        request_at(time, failed=time % 20 == 0, moved=time % 20 == 10)
        for time in range(0, 2000, 10)
    ]
    succeeded = [request_at(time) for time in range(1, 2000, 2)]
    requests = sorted([*every_tenth, *succeeded], key=ended_ms)
    kept = to_keep(requests, lambda request: request)
    assert kept[-MOST_REQUESTS:] == requests[-MOST_REQUESTS:]
    before = requests[:-MOST_REQUESTS]
    in_both = sum(map(is_troubled, kept[-MOST_REQUESTS:]))
    assert 0 < in_both < MOST_TROUBLED
    older = [request for request in before if is_troubled(request)][in_both - MOST_TROUBLED :]
    assert kept[:-MOST_REQUESTS] == older
    assert to_keep(requests[:5], lambda request: request) == requests[:5]
    all_failed = [request_at(time, failed=True) for time in range(1000)]
    assert to_keep(all_failed, lambda request: request) == all_failed[-MOST_REQUESTS:]


def test_events_of_a_removed_worker_are_kept() -> None:
    board = EventBoard()
    board.add(ONE, at(1))
    board.add(ONE, RecentEvents(first_tokens_ms={"a": [5.0]}))
    board.remove(ONE)
    assert board.new_for(OTHER, with_requests=True) == RecentEvents(at(1).requests, {"a": [5.0]})


def test_times_to_the_first_token_reach_all_workers_with_the_same_key() -> None:
    board, clock = EventBoard(), FakeClock()
    instances = [make_instance(clock=clock) for _ in range(2)]
    instances.append(make_instance(clock=clock, key=Secret("another-key-secret")))
    syncs = [InstanceSync([instance], b"a salt") for instance in instances]

    def exchange() -> None:
        for number, sync in enumerate(syncs):
            message = json.loads(json.dumps(RecentEvents([], sync.new_first_tokens_ms()).as_json()))
            board.add(number, RecentEvents.from_json(message))
        for number, sync in enumerate(syncs):
            sync.merge_first_tokens(board.new_for(number, with_requests=False).first_tokens_ms)

    instances[0].health.observe_first_token(100)
    instances[1].health.observe_first_token(900)
    for _ in range(3):
        exchange()
    percentiles = [
        [instance.health.first_token_ms(share, of_at_least=1) for share in (0.5, 0.95)]
        for instance in instances
    ]
    assert percentiles == [[100, 900], [100, 900], [None, None]]
    for _ in range(3 * WINDOW):
        instances[0].health.observe_first_token(200)
    new_ms = syncs[0].new_first_tokens_ms()
    assert list(new_ms.values()) == [[200] * WINDOW]
    assert syncs[0].new_first_tokens_ms() == {}


class Worker:
    """A worker's feed, and a page that sometimes listens to it, from the last event's id."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.feed = Feed(Pool(instances=[]), FakeClock())
        self.last = 0
        self.shown: list[Ended] | None = None

    def reload(self) -> None:
        self.shown = self.feed.snapshot()["requests"]
        self.last = self.feed.refresh()

    def poll(self) -> None:
        if self.shown is None:
            return
        for number, _, request in self.feed.since(self.last):
            self.shown.append(request)
            self.last = number


WORKERS = 3
TROUBLE_EACH = 3
OPS = st.tuples(
    st.sampled_from(["serve", "listen", "leave", "exchange", "replace"]),
    st.integers(0, WORKERS - 1),
    st.sampled_from([1, 2, 3, AT_ONCE, MOST_REQUESTS]),
)


def exchange(board: EventBoard, workers: list[Worker]) -> None:
    """Exchange all new events, as while a page listens."""
    for worker in workers:
        recent = json.loads(json.dumps(RecentEvents(worker.feed.unpublished()).as_json()))
        board.add(worker.number, RecentEvents.from_json(recent))
    for worker in workers:
        listens = worker.shown is not None
        worker.feed.merge(board.new_for(worker.number, with_requests=listens).requests)
        worker.poll()


@given(st.lists(OPS, max_size=30))
def test_every_page_shows_each_request_once(ops: list[Any]) -> None:
    board, numbers, ids = EventBoard(), itertools.count(1), itertools.count()
    workers = [Worker(next(numbers)) for _ in range(WORKERS)]
    for op, which, count in ops:
        worker = workers[which]
        if op == "serve":
            for id in itertools.islice(ids, count):
                status = 503 if id % TROUBLE_EACH == 0 else 200
                worker.feed.observe(ended(id=str(id), ended_s=float(id), status=status))
        elif op == "listen" and worker.shown is None:
            exchange(board, workers)  # the snapshot waits for this
            worker.shown = []
            worker.feed.merge(board.new_for(worker.number, with_requests=True).requests)
            worker.reload()
        elif op == "leave":
            worker.shown = None
        elif op == "exchange":
            exchange(board, workers)
        elif op == "replace":
            board.add(worker.number, RecentEvents(worker.feed.unpublished()))  # sent when it stops
            board.remove(worker.number)
            workers[which] = Worker(next(numbers))
    exchange(board, workers)
    all_served = [str(id) for id in range(next(ids))]
    served = all_served[-MOST_REQUESTS:]
    failed_ids = all_served[::TROUBLE_EACH][-MOST_TROUBLED:]
    served = [id for id in failed_ids if id not in served] + served
    for worker in workers:
        if worker.shown is not None:
            shown = [request["id"] for request in worker.shown]
            assert len(shown) == len(set(shown))
            assert {*served} <= {*shown} or len(served) > AT_ONCE
            worker.reload()
            assert [request["id"] for request in worker.shown] == served
