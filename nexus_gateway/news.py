"""What workers tell each other once: the requests that ended, and their times to the first token.

Decisions and figures are told whole, again and again (`shared_state`). Here each worker tells what
is new since it last told, and of that the newest only. What has happened never changes, so there
is nothing that a later message would have to put right; the line between two processes loses
nothing while both live; and who is slow is told later all that it has missed, again the newest.

Requests are many and long, and wanted by nobody but those who look at the live page. So they are
handed over only while somebody listens, at whichever worker, and told only to workers where
somebody does. What had ended before is handed over when that begins. The board keeps the latest of
all workers, so that whoever listens next sees them whoever of these is gone.

Pure, no socket. An instance is known by the name that `shared_state.Names` gives it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Self

from nexus_gateway.health import RECENT

MOST_REQUESTS = 200

Ended = dict[str, Any]  # a request as the page shows it: no word of what was said


def ended_ms(request: Ended) -> int:
    """Return when a request ended, in Unix ms."""
    found: int = request["endedAt"]
    return found


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


class _Latest:
    """The latest of one sort, whoever told it, and how far each worker was told.

    Args:
        most: how many are kept.
        order: by what they are; None where they come in order.
    """

    def __init__(self, most: int, order: Callable[[Any], float] | None = None) -> None:
        self._most = most
        self._order = order
        self._number = 0
        self._told: dict[int, int] = {}
        self._kept: list[tuple[int, int, Any]] = []

    def add(self, worker: int, items: Iterable[Any]) -> None:
        for item in items:
            self._number += 1
            self._kept.append((self._number, worker, item))
        if (order := self._order) is not None:
            self._kept.sort(key=lambda kept: order(kept[2]))
        del self._kept[: -self._most]

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
        self._requests = _Latest(MOST_REQUESTS, ended_ms)
        self._first_tokens: dict[str, _Latest] = defaultdict(lambda: _Latest(RECENT))

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
