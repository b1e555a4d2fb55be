"""What an answer is worth: whole, honestly broken, or a promise broken.

What a campaign has seen so far.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from nexus_gateway.testing.chaos.plan import Asked
from nexus_gateway.wire.chunks import MALFORMED, choices, extract_text

SHOWN = 300
DONE = "[DONE]"


class Ending(StrEnum):
    """How a request ended that kept every promise."""

    WHOLE = "answered whole"
    SAID_SO = "broke after its first words, and said so"
    LEFT = "the caller left"


class Broken(StrEnum):
    """A promise that was not kept."""

    AVOIDABLE = "an error that could have been avoided"
    KEY_REFUSED = "a caller saw that an upstream refused its key"
    OWN_FAULT = "an error of the gateway's own"
    NO_ERROR_SHAPE = "an error without OpenAI's shape"
    SILENT = "an answer cut short without a word"
    WRONG = "an answer that says something else"
    DROPPED = "a connection broken without a word"
    HANG = "a request that did not end in time"
    KEY_TOLD = "a key was told"
    LEFT_OPEN = "a request that never ends inside"
    BAD_EXIT = "the gateway did not exit with 0"
    TRACEBACK = "a traceback in the log"
    NOT_DONE = "not all requests were sent within the time limit"


@dataclass(frozen=True, slots=True)
class Answered:
    """What came back.

    Args:
        status: 0 where nothing came.
        body: as text.
        headers: as text.
        attempts: as the gateway tells; 0 where it does not.
        first_s: until the first content or the whole answer.
        trouble: what went wrong with the connection, "" for nothing.
        late: whether the limit was reached.
    """

    status: int
    body: str
    headers: str = ""
    attempts: int = 0
    first_s: float = 0.0
    trouble: str = ""
    late: bool = False


@dataclass(frozen=True, slots=True)
class Judgement:
    """What an answer is worth.

    Args:
        ending: how it ended.
        why: in words, for a broken promise.
    """

    ending: Ending | Broken
    why: str = ""


def judge(asked: Asked, answered: Answered, key: str = "") -> Judgement:
    """Look at an answer.

    Args:
        asked: the request; its text is what the answer has to say.
        answered: what came.
        key: how keys begin, that must not be told; "" for none.
    """
    if key and key in answered.body + answered.headers:
        return Judgement(Broken.KEY_TOLD, answered.body[:SHOWN])
    if answered.late:
        return Judgement(
            Broken.HANG, f"{answered.status or 'no answer'}, {answered.body[:SHOWN]!r}"
        )
    if answered.trouble:
        why = f"{answered.trouble} after {answered.body[-SHOWN:]!r}"
        return Judgement(Broken.DROPPED, why)
    if answered.status != 200:
        return _error(answered)
    return _stream(asked, answered.body) if asked.stream else _whole(asked, answered.body)


def _error(answered: Answered) -> Judgement:
    why = f"{answered.status} {answered.body[:SHOWN]}"
    try:
        error = json.loads(answered.body)
    except ValueError:
        error = None
    if not is_error(error):
        return Judgement(Broken.NO_ERROR_SHAPE, why)
    if answered.status in (401, 403):
        return Judgement(Broken.KEY_REFUSED, why)
    if answered.status == 500:
        return Judgement(Broken.OWN_FAULT, why)
    return Judgement(Broken.AVOIDABLE, why)


def is_error(body: Any) -> bool:
    """Tell whether a body is an error as OpenAI shapes it."""
    error = body.get("error") if isinstance(body, dict) else None
    if not isinstance(error, dict) or not {"message", "type", "param", "code"} <= error.keys():
        return False
    code = error["code"]
    texts = isinstance(error["message"], str) and isinstance(error["type"], str)
    return texts and bool(error["message"]) and (code is None or isinstance(code, str))


def _whole(asked: Asked, body: str) -> Judgement:
    try:
        choice = json.loads(body)["choices"][0]
        text, finish = choice["message"]["content"], choice["finish_reason"]
    except MALFORMED:
        return Judgement(Broken.WRONG, f"no completion: {body[:SHOWN]!r}")
    if text != asked.text or not finish:
        return _unlike(asked, str(text))
    return Judgement(Ending.WHOLE)


def _stream(asked: Asked, body: str) -> Judgement:
    *events, rest = body.replace("\r\n", "\n").split("\n\n")
    said, finished, done = "", False, False
    for event in (e for e in events if e and not e.startswith(":")):
        data = event.removeprefix("data: ")
        if done or data is event:
            return Judgement(Broken.WRONG, f"not an event, or one after the end: {event[:SHOWN]!r}")
        if data == DONE:
            done = True
            continue
        try:
            chunk = json.loads(data)
            if "error" in chunk:
                return _broken_off(asked, said, chunk, body)
            said += "".join(extract_text(c["delta"]) for c in choices(chunk))
            finished = finished or any(c.get("finish_reason") for c in choices(chunk))
        except MALFORMED:
            return Judgement(Broken.WRONG, f"not a chunk: {event[:SHOWN]!r}")
    if said != asked.text and not asked.text.startswith(said):
        return _unlike(asked, said)
    if said != asked.text or not (finished and done) or rest:
        return Judgement(Broken.SILENT, f"ends with {body[-SHOWN:]!r}")
    return Judgement(Ending.WHOLE)


def _broken_off(asked: Asked, said: str, chunk: Any, body: str) -> Judgement:
    """Judge a stream that ends with an error event."""
    if not is_error(chunk):
        return Judgement(Broken.NO_ERROR_SHAPE, str(chunk)[:SHOWN])
    if not asked.text.startswith(said):
        return _unlike(asked, said)
    if not said:
        return Judgement(Broken.AVOIDABLE, f"a stream without a word: {str(chunk)[:SHOWN]}")
    last = body.rstrip("\n").rpartition("\n\n")[2]
    if '"error"' not in last:
        return Judgement(Broken.WRONG, f"goes on after its error: {last[:SHOWN]!r}")
    return Judgement(Ending.SAID_SO)


def _unlike(asked: Asked, said: str) -> Judgement:
    return Judgement(Broken.WRONG, f"{said[:SHOWN]!r} instead of {asked.text[:SHOWN]!r}")


@dataclass
class Tally:
    """Counts, latencies and examples.

    Attributes:
        requests: how many were sent.
        endings: how they ended.
        attempts: by how many attempts an answer took, as far as the gateway tells.
        at_once_s: the time to the first content, of those answered by the first attempt.
        later_s: the same, of those that failed over.
        examples: of each broken promise the first.
        hits: upstream requests, by instance.
        befallen: by fault, how many requests or connections.
        health: what the last gateway said at its end.
        took_s: the time of it all.
        late_s: how late the mock and the callers were at most, as the machine was busy.
    """

    requests: int = 0
    endings: Counter[Ending | Broken] = field(default_factory=Counter)
    attempts: Counter[int] = field(default_factory=Counter)
    at_once_s: list[float] = field(default_factory=list)
    later_s: list[float] = field(default_factory=list)
    examples: dict[Broken, str] = field(default_factory=dict)
    hits: Counter[int] = field(default_factory=Counter)
    befallen: Counter[str] = field(default_factory=Counter)
    health: Mapping[str, Any] = field(default_factory=dict)
    took_s: float = 0.0
    late_s: float = 0.0

    @property
    def failed_over(self) -> int:
        """How many requests took more than one attempt."""
        return sum(count for attempts, count in self.attempts.items() if attempts > 1)

    @property
    def kept(self) -> bool:
        """Whether every promise was kept."""
        return not self.broken()

    def broken(self) -> list[Broken]:
        """Return the promises that were not kept."""
        return [promise for promise in Broken if self.endings[promise]]

    def add(self, asked: Asked, answered: Answered, judgement: Judgement) -> None:
        """Count an answer."""
        self.attempts[answered.attempts] += 1
        if judgement.ending is Ending.WHOLE:
            (self.later_s if answered.attempts > 1 else self.at_once_s).append(answered.first_s)
        if isinstance(judgement.ending, Broken):
            self.blame(judgement.ending, f"request {asked.number}: {judgement.why}")
        else:
            self.endings[judgement.ending] += 1

    def blame(self, promise: Broken, example: str) -> None:
        """Note a broken promise."""
        self.endings[promise] += 1
        self.examples.setdefault(promise, example)


def percentile(values: Sequence[float], share: float) -> float | None:
    """Return the smallest value that so large a share does not exceed; None of nothing."""
    if not values:
        return None
    return sorted(values)[max(0, math.ceil(len(values) * share) - 1)]
