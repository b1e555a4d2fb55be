"""Judges the answers of a campaign and counts the results."""

from __future__ import annotations

import json
import math
import time
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, NamedTuple

from nexus_gateway.testing.chaos.plan import ChatRequest
from nexus_gateway.wire.chunks import MALFORMED, choices, extract_text

SHOWN = 300
DONE = "[DONE]"
NO_ANSWER = ": no answer in "
OVERLOADED = frozenset({"overloaded", "bodies_overloaded"})


class Ending(StrEnum):
    """How a request ended with every promise kept."""

    WHOLE = "complete answer"
    REPORTED = "broken after its first content, with an error event"
    NOT_ANSWERED = "no complete answer within the time limit, as its upstream never answered"
    LEFT = "the caller disconnected"
    REFUSED = "refused for its content, which every instance refuses"
    TOO_MUCH = "refused for its body: too slow, too large, or one too many"


class Broken(StrEnum):
    """A promise that was not kept."""

    AVOIDABLE = "an avoidable error"
    KEY_REFUSED = "an upstream's 401 or 403 reached a caller"
    OWN_FAULT = "an internal error of the gateway"
    NO_ERROR_SHAPE = "an error without OpenAI's shape"
    SILENT = "an answer truncated without an error"
    WRONG = "a wrong answer"
    DROPPED = "a connection closed without an error"
    HANG = "a request that did not end in time"
    KEY_EXPOSED = "a key was exposed"
    LEFT_OPEN = "a request still in flight at the end"
    UNNOTICED = "a worker that hangs and counts as serving"
    UNLIMITED = "a body that was too slow or too large, and was served"
    NOT_RETURNED = "memory for bodies that was not given back"
    BAD_EXIT = "the gateway did not exit with 0"
    TRACEBACK = "a traceback in the log"
    EXHAUSTED = "more requests admitted than there were file descriptors for"
    NOT_DONE = "not all requests were sent within the time limit"


@dataclass(slots=True)
class Answer:
    """A received answer."""

    status: int = 0  # 0 if nothing was received
    body: str = ""
    headers: str = ""
    attempts: int = 0  # 0 if the gateway does not report them
    first_s: float = 0.0  # to the first content or to the full answer
    connection_error: str = ""
    late: bool = False  # the limit was reached

    @property
    def is_refusal(self) -> bool:
        """Whether there was no place for the request, and it may be sent again."""
        if self.status != 503 or "Retry-After" not in self.headers:
            return False
        body = _parsed(self.body)
        return is_error(body) and body["error"]["code"] in OVERLOADED


class Judgement(NamedTuple):
    """The judgement of an answer; `why` explains a broken promise."""

    ending: Ending | Broken
    why: str = ""


def judge(request: ChatRequest, answer: Answer, key: str = "") -> Judgement:
    """Compare an answer with its request; no answer may have the prefix of the keys."""
    if key and key in answer.body + answer.headers:
        return Judgement(Broken.KEY_EXPOSED, answer.body[:SHOWN])
    if answer.late:
        return Judgement(Broken.HANG, f"{answer.status or 'no answer'}, {answer.body[:SHOWN]!r}")
    if answer.connection_error:
        why = f"{answer.connection_error} after {answer.body[-SHOWN:]!r}"
        return Judgement(Broken.DROPPED, why)
    if answer.status == 503 and not request.stream and NO_ANSWER in answer.body:
        return Judgement(Ending.NOT_ANSWERED)  # nothing tells a slow answer from none
    if request.poison:
        return _refusal(answer)
    if answer.status != 200:
        return _error(answer)
    return _stream(request, answer.body) if request.stream else _whole(request, answer.body)


def _refusal(answer: Answer) -> Judgement:
    """Judge the answer to a request that no instance accepts: whose fault that is, is its own."""
    if not is_error(_parsed(answer.body)):
        return Judgement(Broken.NO_ERROR_SHAPE, f"{answer.status} {answer.body[:SHOWN]}")
    if answer.status in (200, 401) or (answer.status >= 500 and answer.status != 503):
        return Judgement(Broken.WRONG, f"{answer.status} {answer.body[:SHOWN]}")
    return Judgement(Ending.REFUSED)


def judge_body(
    request: ChatRequest, answer: Answer, statuses: Collection[int], key: str = ""
) -> Judgement:
    """Judge the answer to a body that is too slow or too large, or may be: one of `statuses`."""
    judgement = judge(request, answer, key)
    if answer.status == 200 and 200 not in statuses:
        return Judgement(Broken.UNLIMITED, answer.body[:SHOWN])
    refused = answer.status in statuses and (answer.status != 503 or answer.is_refusal)
    if judgement.ending is Broken.AVOIDABLE and refused:
        return Judgement(Ending.TOO_MUCH)
    return judgement


def _parsed(body: str) -> Any:
    try:
        return json.loads(body)
    except ValueError:
        return None


def _error(answer: Answer) -> Judgement:
    error = _parsed(answer.body)
    by_status = {401: Broken.KEY_REFUSED, 403: Broken.KEY_REFUSED, 500: Broken.OWN_FAULT}
    shaped = is_error(error)
    promise = by_status.get(answer.status, Broken.AVOIDABLE) if shaped else Broken.NO_ERROR_SHAPE
    return Judgement(promise, f"{answer.status} {answer.body[:SHOWN]}")


def is_error(body: Any) -> bool:
    """Return whether a body is an error in OpenAI's shape."""
    error = body.get("error") if isinstance(body, dict) else None
    if not isinstance(error, dict) or not {"message", "type", "param", "code"} <= error.keys():
        return False
    code = error["code"]
    texts = isinstance(error["message"], str) and isinstance(error["type"], str)
    return texts and bool(error["message"]) and (code is None or isinstance(code, str))


def _whole(request: ChatRequest, body: str) -> Judgement:
    try:
        choice = json.loads(body)["choices"][0]
        text, finish = choice["message"]["content"], choice["finish_reason"]
    except MALFORMED:
        return Judgement(Broken.WRONG, f"not a completion: {body[:SHOWN]!r}")
    if text != request.text or not finish:
        return _wrong(request, str(text))
    return Judgement(Ending.WHOLE)


def _stream(request: ChatRequest, body: str) -> Judgement:
    *events, rest = body.replace("\r\n", "\n").split("\n\n")
    text, finished, done = "", False, False
    for event in (e for e in events if e and not e.startswith(":")):
        data = event.removeprefix("data: ")
        if done or data is event:
            return Judgement(Broken.WRONG, f"no event, or one after the end: {event[:SHOWN]!r}")
        if data == DONE:
            done = True
            continue
        try:
            chunk = json.loads(data)
            if "error" in chunk:
                return _broken(request, text, chunk, body)
            text += "".join(extract_text(c["delta"]) for c in choices(chunk))
            finished = finished or any(c.get("finish_reason") for c in choices(chunk))
        except MALFORMED:
            return Judgement(Broken.WRONG, f"not a chunk: {event[:SHOWN]!r}")
    if not request.text.startswith(text):
        return _wrong(request, text)
    if text != request.text or not (finished and done) or rest:
        return Judgement(Broken.SILENT, f"ends with {body[-SHOWN:]!r}")
    return Judgement(Ending.WHOLE)


def _broken(request: ChatRequest, text: str, chunk: Any, body: str) -> Judgement:
    """Judge a stream that has an error event."""
    if not is_error(chunk):
        return Judgement(Broken.NO_ERROR_SHAPE, str(chunk)[:SHOWN])
    if not request.text.startswith(text):
        return _wrong(request, text)
    if not text:
        return Judgement(Broken.AVOIDABLE, f"a stream without content: {str(chunk)[:SHOWN]}")
    last = body.rstrip("\n").rpartition("\n\n")[2]
    if '"error"' not in last:
        return Judgement(Broken.WRONG, f"continues after its error: {last[:SHOWN]!r}")
    return Judgement(Ending.REPORTED)


def _wrong(request: ChatRequest, text: str) -> Judgement:
    return Judgement(Broken.WRONG, f"{text[:SHOWN]!r} instead of {request.text[:SHOWN]!r}")


@dataclass
class Tally:
    """The results of a campaign so far."""

    requests: int = 0
    endings: Counter[Ending | Broken] = field(default_factory=Counter)
    failed_over: int = 0  # answers after more than one attempt
    # The time to the first content of answers without and with fail-overs.
    at_once_s: list[float] = field(default_factory=list)
    later_s: list[float] = field(default_factory=list)
    examples: dict[Broken, str] = field(default_factory=dict)
    hits: Counter[int] = field(default_factory=Counter)  # upstream requests by instance
    befallen: Counter[str] = field(default_factory=Counter)  # requests or connections by fault
    health: Mapping[str, Any] = field(default_factory=dict)  # of the last gateway, at its end
    start_s: float = field(default_factory=time.monotonic)
    took_s: float = 0.0
    late_s: float = 0.0  # the longest delay of the mock and the callers, as the machine was busy

    def elapsed_s(self) -> float:
        return time.monotonic() - self.start_s

    @property
    def kept(self) -> bool:
        return not self.broken()

    def broken(self) -> list[Broken]:
        """Return the promises that were not kept."""
        return [promise for promise in Broken if self.endings[promise]]

    def add(self, request: ChatRequest, answer: Answer, judgement: Judgement) -> None:
        """Count an answer."""
        self.failed_over += answer.attempts > 1
        if judgement.ending is Ending.WHOLE:
            (self.later_s if answer.attempts > 1 else self.at_once_s).append(answer.first_s)
        if isinstance(judgement.ending, Broken):
            self.add_broken(judgement.ending, f"request {request.number}: {judgement.why}")
        else:
            self.endings[judgement.ending] += 1

    def add_broken(self, promise: Broken, example: str) -> None:
        """Count a broken promise."""
        self.endings[promise] += 1
        self.examples.setdefault(promise, example)


def percentile(values: Sequence[float], share: float) -> float | None:
    """Return the smallest value that this share of the values does not exceed; None if empty."""
    if not values:
        return None
    return sorted(values)[max(0, math.ceil(len(values) * share) - 1)]
