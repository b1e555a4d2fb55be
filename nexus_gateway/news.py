"""What workers tell each other once: the requests that ended, and their times to the first token.

Decisions and figures are told whole, again and again (`shared_state`). Here each worker tells what
is new since it last told, and of that the newest only. What has happened never changes, so there
is nothing that a later message would have to put right; the line between two processes loses
nothing while both live; and who is slow is told later all that it has missed, again the newest.

Requests are many and long, and wanted by nobody but those who look at the live page. So they are
handed over only while somebody listens, at whichever worker, and told only to workers where
somebody does. What had ended before is handed over when that begins. The board keeps the latest of
all workers, so that whoever listens next sees them whoever of these is gone. Where much goes well,
what went badly is soon not among the latest any more: of that the latest are kept beside.

Pure, no socket. An instance is known by the name that `shared_state.Names` gives it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Self, TypeVar

from nexus_gateway.health import RECENT

MOST_REQUESTS = 200
MOST_TROUBLED = 100

Ended = dict[str, Any]  # a request as the page shows it: no word of what was said
T = TypeVar("T")


def ended_ms(request: Ended) -> int:
    """Return when a request ended, in Unix ms."""
    found: int = request["endedAt"]
    return found


def is_troubled(request: Ended) -> bool:
    """Tell whether a request failed, or another instance had to be asked."""
    return bool(request["failed"] or request["failedOver"])


def to_keep(entries: Sequence[T], request_of: Callable[[T], Ended]) -> list[T]:
    """Return the latest of all, and before them the latest of those that went badly.

    Args:
        entries: the oldest first.
        request_of: the request that an entry is about.
    """
    before, latest = entries[:-MOST_REQUESTS], entries[-MOST_REQUESTS:]
    if not before:
        return list(latest)
    room = MOST_TROUBLED - sum(is_troubled(request_of(entry)) for entry in latest)
    troubled = [entry for entry in before if is_troubled(request_of(entry))]
    return [*(troubled[-room:] if room > 0 else ()), *latest]


@dataclass(slots=True)
class News:
    """What is new.

    Args:
        requests: those that ended, the oldest first.
        first_tokens_ms: times to the first token, by the instance.
    """

    requests: list[Ended] = field(default_factory=list)
    first_tokens_ms: dict[str, list[float]] = field(default_factory=dict)

    def __bool__(self) -> bool:
        """Tell whether there is any."""
        return bool(self.requests or self.first_tokens_ms)

    def as_json(self) -> dict[str, Any]:
        """Return it as JSON has it."""
        return {"requests": self.requests, "first_tokens_ms": self.first_tokens_ms}

    @classmethod
    def from_json(cls, found: dict[str, Any]) -> Self:
        """Read what `as_json` wrote."""
        return cls(found["requests"], found["first_tokens_ms"])


_Kept = tuple[int, int, Any]  # a number, which worker told it, and what


def _recent(kept: list[_Kept]) -> list[_Kept]:
    return kept[-RECENT:]


def _latest_requests(kept: list[_Kept]) -> list[_Kept]:
    kept.sort(key=lambda entry: ended_ms(entry[2]))
    return to_keep(kept, lambda entry: entry[2])


class _Latest:
    """The latest of one sort, whoever told it, and how far each worker was told.

    Args:
        choose: which of all are kept.
    """

    def __init__(self, choose: Callable[[list[_Kept]], list[_Kept]]) -> None:
        self._choose = choose
        self._number = 0
        self._told: dict[int, int] = {}
        self._kept: list[_Kept] = []

    def add(self, worker: int, items: Sequence[Any]) -> None:
        if not items:
            return
        for item in items:
            self._number += 1
            self._kept.append((self._number, worker, item))
        self._kept[:] = self._choose(self._kept)

    def new_to(self, worker: int) -> list[Any]:
        """Return what others told and this worker was not told yet; from now on it was."""
        told = self._told.get(worker, 0)
        if told == self._number:
            return []
        self._told[worker] = self._number
        return [item for number, by, item in self._kept if number > told and by != worker]

    def forget(self, worker: int) -> None:
        self._told.pop(worker, None)


class Board:
    """The latest news of all workers, and what each of them is to hear of it."""

    def __init__(self) -> None:
        self._requests = _Latest(_latest_requests)
        self._first_tokens: dict[str, _Latest] = defaultdict(lambda: _Latest(_recent))

    def hear(self, worker: int, news: News) -> None:
        """Note what is new with a worker."""
        self._requests.add(worker, news.requests)
        for name, times_ms in news.first_tokens_ms.items():
            self._first_tokens[name].add(worker, times_ms)

    def tell(self, worker: int, *, listens: bool) -> News:
        """Return what is new to a worker; of requests only if somebody listens there."""
        found = News(self._requests.new_to(worker) if listens else [])
        for name, latest in self._first_tokens.items():
            if times_ms := latest.new_to(worker):
                found.first_tokens_ms[name] = times_ms
        return found

    def forget(self, worker: int) -> None:
        """Note that a worker is gone; what it told stays."""
        for latest in (self._requests, *self._first_tokens.values()):
            latest.forget(worker)
