"""What an answer is worth: whole, honestly broken, or a promise broken."""

from __future__ import annotations

import json
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from nexus_gateway.answer import ODD_SHAPES, choices, text_in
from nexus_gateway.testing.chaos.plan import Asked

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
    except ODD_SHAPES:
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
            said += "".join(text_in(c["delta"]) for c in choices(chunk))
            finished = finished or any(c.get("finish_reason") for c in choices(chunk))
        except ODD_SHAPES:
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
