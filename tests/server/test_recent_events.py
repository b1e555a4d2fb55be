"""What workers tell each other once: requests that ended, and times to the first token."""

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
    return RecentEvents([told(time) for time in times])


def told(time: int, *, failed: bool = False, moved: bool = False) -> Ended:
    return {"id": f"req-{time}", "endedAt": time, "failed": failed, "failedOver": moved}


def times(news: RecentEvents) -> list[int]:
    return [request["endedAt"] for request in news.requests]


def test_a_request_is_told_once_and_never_back() -> None:
    board = EventBoard()
    board.add(ONE, at(1, 2))
    assert times(board.new_for(OTHER, with_requests=True)) == [1, 2]
    board.add(ONE, at(4))
    board.add(OTHER, at(3))
    assert times(board.new_for(OTHER, with_requests=True)) == [4]
    assert times(board.new_for(ONE, with_requests=True)) == [3]
    assert not any(board.new_for(worker, with_requests=True) for worker in (ONE, OTHER))


def test_who_does_not_listen_is_told_when_it_does() -> None:
    board = EventBoard()
    board.add(ONE, at(1))
    assert not board.new_for(OTHER, with_requests=False)
    assert times(board.new_for(OTHER, with_requests=True)) == [1]


def test_of_all_requests_the_last_ended_are_kept_whoever_tells_last() -> None:
    board = EventBoard()
    board.add(ONE, at(*range(1000, 1000 + MOST_REQUESTS - 1)))
    board.add(OTHER, at(*range(MOST_REQUESTS)))
    assert times(board.new_for(THIRD, with_requests=True)) == [
        MOST_REQUESTS - 1,
        *range(1000, 1000 + MOST_REQUESTS - 1),
    ]


def test_what_went_badly_is_kept_for_longer_and_once() -> None:
    every_tenth = [
        told(time, failed=time % 20 == 0, moved=time % 20 == 10) for time in range(0, 2000, 10)
    ]
    well = [told(time) for time in range(1, 2000, 2)]
    requests = sorted([*every_tenth, *well], key=ended_ms)
    kept = to_keep(requests, lambda request: request)
    assert kept[-MOST_REQUESTS:] == requests[-MOST_REQUESTS:]
    before = requests[:-MOST_REQUESTS]
    in_both = sum(map(is_troubled, kept[-MOST_REQUESTS:]))
    assert 0 < in_both < MOST_TROUBLED
    older = [request for request in before if is_troubled(request)][in_both - MOST_TROUBLED :]
    assert kept[:-MOST_REQUESTS] == older
    assert to_keep(requests[:5], lambda request: request) == requests[:5]
    all_badly = [told(time, failed=True) for time in range(1000)]
    assert to_keep(all_badly, lambda request: request) == all_badly[-MOST_REQUESTS:]


def test_what_the_gone_told_stays() -> None:
    board = EventBoard()
    board.add(ONE, at(1))
    board.add(ONE, RecentEvents(first_tokens_ms={"a": [5.0]}))
    board.remove(ONE)
    assert board.new_for(OTHER, with_requests=True) == RecentEvents(at(1).requests, {"a": [5.0]})


def test_times_to_the_first_token_reach_all_others_and_no_other_key() -> None:
    board, clock = EventBoard(), FakeClock()
    instances = [make_instance(clock=clock) for _ in range(2)]
    instances.append(make_instance(clock=clock, key=Secret("another-key-secret")))
    names = [InstanceSync([instance], b"a salt") for instance in instances]

    def exchange() -> None:
        for number, name in enumerate(names):
            told = json.loads(json.dumps(RecentEvents([], name.new_first_tokens_ms()).as_json()))
            board.add(number, RecentEvents.from_json(told))
        for number, name in enumerate(names):
            name.merge_first_tokens(board.new_for(number, with_requests=False).first_tokens_ms)

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
    said = names[0].new_first_tokens_ms()
    assert list(said.values()) == [[200] * WINDOW]
    assert names[0].new_first_tokens_ms() == {}


class Worker:
    """A worker's feed, and a page that listens there now and then, by its last event's id."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.feed = Feed(Pool(instances=[]), FakeClock())
        self.last = 0
        self.shown: list[Ended] | None = None

    def reload(self) -> None:
        self.shown = self.feed.snapshot()["requests"]
        self.last = self.feed.refresh()

    def hear(self) -> None:
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
    """Tell all that is new, as where somebody listens."""
    for worker in workers:
        news = json.loads(json.dumps(RecentEvents(worker.feed.unpublished()).as_json()))
        board.add(worker.number, RecentEvents.from_json(news))
    for worker in workers:
        listens = worker.shown is not None
        worker.feed.merge(board.new_for(worker.number, with_requests=listens).requests)
        worker.hear()


@given(st.lists(OPS, max_size=30))
def test_every_page_shows_each_request_once_whoever_comes_and_goes(ops: list[Any]) -> None:
    board, numbers, ids = EventBoard(), itertools.count(1), itertools.count()
    workers = [Worker(next(numbers)) for _ in range(WORKERS)]
    for op, which, count in ops:
        worker = workers[which]
        if op == "serve":
            for id in itertools.islice(ids, count):
                status = 503 if id % TROUBLE_EACH == 0 else 200
                worker.feed.observe(ended(id=str(id), ended_s=float(id), status=status))
        elif op == "listen" and worker.shown is None:
            exchange(board, workers)  # what the snapshot waits for
            worker.shown = []
            worker.feed.merge(board.new_for(worker.number, with_requests=True).requests)
            worker.reload()
        elif op == "leave":
            worker.shown = None
        elif op == "exchange":
            exchange(board, workers)
        elif op == "replace":
            board.add(worker.number, RecentEvents(worker.feed.unpublished()))  # its last words
            board.remove(worker.number)
            workers[which] = Worker(next(numbers))
    exchange(board, workers)
    all_served = [str(id) for id in range(next(ids))]
    served = all_served[-MOST_REQUESTS:]
    badly = all_served[::TROUBLE_EACH][-MOST_TROUBLED:]
    served = [id for id in badly if id not in served] + served
    for worker in workers:
        if worker.shown is not None:
            shown = [request["id"] for request in worker.shown]
            assert len(shown) == len(set(shown))
            assert {*served} <= {*shown} or len(served) > AT_ONCE
            worker.reload()
            assert [request["id"] for request in worker.shown] == served
