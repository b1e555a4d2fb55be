"""The faults of a mock, by name: one table for the command line, for JSON and for their effects.

On a command line or in a script a fault is `NAME` or `NAME=VALUE`, for one instance
`N:NAME=VALUE`. In JSON a set of faults is an object of names and values. A fault's effect is a
change of fields of `Reply`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from random import Random
from typing import Any

from nexus_gateway.testing.reply import Fate, Reply

Value = float | str | None
Faults = Mapping[str, Value]
Effect = Callable[[Any, Random], Mapping[str, Any]]

OK = "ok"
CHANCE = "chance"
# These affect a connection before the client has sent anything.
CONNECTION_FAULTS = ("close", "tls")
LONGEST_MS = 86_400_000
LARGEST_EVENT = 1 << 30
MOST_WORDS = 1_000_000
NOWHERE = "http://127.0.0.1:9/v1"
# A word of a message: with the status behind it every instance refuses the request.
POISON = "poison-"
_POISON = re.compile(re.escape(POISON) + r"(4\d\d)\b")
_POISON_TEXTS = {
    402: "This request requires more credits, or fewer max_tokens.",
    403: "Your organization must be verified to use this feature.",
    429: "Request too large: the limit is 6000 tokens, and 9000 were requested.",
}
PAGE = b"<!doctype html><title>Bad Gateway</title><h1>Not what you have asked for</h1>"
_ITEM = re.compile(r"(?:(?P<number>[0-9]{1,4}):)?(?P<name>[a-z0-9-]+)(?:=(?P<value>.*))?")
_INTEGERS = ("K", "CODE", "BYTES")


class WrongFault(ValueError):
    """An unknown fault or a wrong value; the text can be shown to a user."""


@dataclass(frozen=True, slots=True)
class Fault:
    """A named fault."""

    name: str
    value: str  # the unit or the meaning of its value, "" if it takes none
    default: Value  # its value if only the name is given
    help: str
    effect: Effect  # returns the fields of `Reply` that change, from its value and chance
    most: float = 0  # the largest value; 0 if the value is text

    @property
    def syntax(self) -> str:
        """Its form on the command line."""
        return f"{self.name}={self.value}" if self.value else self.name

    def parse(self, value: object) -> Value:
        """Check a value, text or from JSON; None and True stand for the default.

        Raises:
            WrongFault: it is not allowed.
        """
        if value is None or value is True:
            return self.default
        if not self.value:
            raise WrongFault(f"{self.name} takes no value.")
        if not self.most:
            if not isinstance(value, str) or not value or not value.isprintable():
                raise WrongFault(f"{self.syntax} must be text.")
            return value
        number = _number(value)
        if not 0 <= number <= self.most:
            raise WrongFault(f"{self.syntax} must be a number from 0 to {self.most:.0f}.")
        if number.is_integer():
            return int(number)
        if self.value in _INTEGERS:
            raise WrongFault(f"{self.syntax} must be a whole number.")
        return number


def _number(value: object) -> float:
    """Return a value as a number, NaN if it is none."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return math.nan
    try:
        return float(value)
    except (ValueError, OverflowError):
        return math.nan


def _sets(field: str, **others: Any) -> Effect:
    """Return the effect that sets a field of `Reply` to the fault's value, and others."""
    return lambda value, _: {field: value, **others}


def _flag(name: str, help: str, **fields: Any) -> Fault:
    """Return a fault without a value, which sets fields of `Reply`."""
    return Fault(name, "", None, help, lambda *_: fields)


def _after(name: str, help: str, field: str, fate: Fate) -> Fault:
    """Return a fault after K words; an answer that is not streamed ends by the fate instead."""
    return Fault(name, "K", 3, help, _sets(field, whole_fate=fate), MOST_WORDS)


def _delay(ms: float, _: Random) -> Mapping[str, Any]:
    return {"head_delay_s": ms / 1000}


def _jitter(ms: float, rng: Random) -> Mapping[str, Any]:
    return _delay(rng.uniform(0, ms), rng)


def _drip(ms: float, _: Random) -> Mapping[str, Any]:
    return {"delay_s": ms / 1000}


def _errors(chance: float, rng: Random) -> Mapping[str, Any]:
    return {"status": 500} if rng.random() < chance else {}


def _limited(seconds: float, _: Random) -> Mapping[str, Any]:
    return {"status": 429, "headers": {"Retry-After": f"{seconds:g}"}}


def _redirect(url: str, _: Random) -> Mapping[str, Any]:
    return {"status": 302, "headers": {"Location": url}}


def _error_event(k: int, _: Random) -> Mapping[str, Any]:
    end = {"error_after": k, "end_after": k}
    return {**end, "role_first": k > 0, "whole_fate": Fate.ERROR}


_ERROR_EVENT = "send an error event after K words; 0: as the first event"
_OVERSIZED = "send an event of this size before the first word"
_CHANCE = "apply the other faults to this share of requests only"
FAULTS: tuple[Fault, ...] = (
    Fault("delay", "MS", 500, "delay the answer by this", _delay, LONGEST_MS),
    Fault("jitter", "MS", 500, "delay the answer by a random time up to this", _jitter, LONGEST_MS),
    Fault("drip", "MS", 50, "wait this long between words", _drip, LONGEST_MS),
    _flag("bytewise", "send each byte separately", bytewise=True),
    _flag("crlf", "end lines with CR LF", newline="\r\n"),
    _flag("no-done", "omit the last event, [DONE]", done=False),
    Fault("errors", "P", 0.3, "answer 500 with this probability", _errors, 1),
    Fault("status", "CODE", 500, "answer with this status and an error", _sets("status"), 599),
    Fault("429", "S", 1, "answer 429 with this Retry-After", _limited, 86_400),
    _flag("401", "reject the key", status=401),
    Fault("redirect", "URL", NOWHERE, "answer 302 with this Location", _redirect),
    _flag("html", "answer 200 with an HTML page", body=PAGE, content_type="text/html"),
    _flag("empty", "answer 200 with an empty body", body=b""),
    _flag("hang", "never answer", hang=True),
    _flag("reset", "accept the request, then reset the connection", reset=True),
    _flag("close", "close each connection immediately", reset=True),
    _flag("tls", "fail each TLS handshake", reset=True),
    _flag("silent", "have a host name that no name server answers for"),
    _flag("role-hang", "start a stream with a role, then stop", hang_after=0, whole_fate=Fate.HANG),
    _flag("comments", "send only comments, for ever", comments_only=True, whole_fate=Fate.HANG),
    _after("cut", "break the connection after K words", "cut_after", Fate.CUT),
    _after("end", "end the answer properly, but after K words", "end_after", Fate.END),
    _after("stall", "stop sending after K words", "hang_after", Fate.HANG),
    Fault("error-event", "K", 3, _ERROR_EVENT, _error_event, MOST_WORDS),
    _after("garbage", "send an event that is not JSON after K words", "garbage_after", Fate.END),
    Fault("oversized", "BYTES", 1 << 24, _OVERSIZED, _sets("oversized"), LARGEST_EVENT),
    _flag("again", "send one more answer right behind the answer", again=True),
    Fault(CHANCE, "P", 1, _CHANCE, lambda *_: {}, 1),
)
_BY_NAME = {fault.name: fault for fault in FAULTS}


def _named(name: object) -> Fault:
    fault = _BY_NAME.get(str(name))
    if fault is None:
        raise WrongFault(f"unknown fault {str(name)[:40]!r}; known: {', '.join(_BY_NAME)}.")
    return fault


def read_faults(value: object) -> dict[str, Value]:
    """Check a set of faults from JSON, in which `null` and `true` stand for the default.

    Raises:
        WrongFault: it is not an object of names and allowed values.
    """
    if not isinstance(value, dict):
        raise WrongFault('faults must be an object such as {"status": 500, "delay": 200}.')
    return {name: _named(name).parse(v) for name, v in value.items()}


def assign(items: Iterable[str], instances: int) -> dict[int, dict[str, Value]]:
    """Read faults from a command line: `NAME`, `NAME=VALUE`, `N:NAME`, `N:NAME=VALUE` or `ok`.

    Returns:
        The complete set of each instance that an item names, by its number; the first is 1.

    Raises:
        WrongFault: an item cannot be used.
    """
    shared: dict[str, Value] | None = None
    sets: dict[int, dict[str, Value]] = {}
    for item in items:
        number, name, value = _split(item, instances)
        fault = {} if name == OK else {name: _named(name).parse(value)}
        if number is None:
            shared = {**(shared or {}), **fault}
        else:
            sets.setdefault(number, {}).update(fault)
    numbers = sorted(sets) if shared is None else range(1, instances + 1)
    return {number: {**(shared or {}), **sets.get(number, {})} for number in numbers}


def _split(item: str, instances: int) -> tuple[int | None, str, str | None]:
    match = _ITEM.fullmatch(item.strip())
    if match is None:
        raise WrongFault(f"{item[:40]!r} is not a fault; write NAME, NAME=VALUE or N:NAME=VALUE.")
    number = None if match["number"] is None else int(match["number"])
    if number is not None and not 1 <= number <= instances:
        raise WrongFault(f"{item[:40]!r}: there is no instance {number}; there are {instances}.")
    if match["name"] == OK and match["value"] is not None:
        raise WrongFault(f"{OK} takes no value.")
    return number, match["name"], match["value"]


def apply(reply: Reply, faults: Faults, rng: Random) -> Reply:
    """Return a reply with faults; those later in the table win, delays add up."""
    fields: dict[str, Any] = {}
    for fault in FAULTS:
        if fault.name in faults:
            effect = fault.effect(faults[fault.name], rng)
            delay_s = fields.get("head_delay_s", 0.0) + effect.get("head_delay_s", 0.0)
            fields |= {**effect, "head_delay_s": delay_s}
    return replace(reply, **fields)


def described() -> Iterator[str]:
    """Yield a line of help for each fault: its form, its effect, its default."""
    for fault in FAULTS:
        default = f" ({shown(fault.default)})" if fault.value else ""
        yield f"  {fault.syntax:<20}{fault.help}{default}"


def shown(value: Value) -> str:
    """Return a value in its form on the command line."""
    return f"{value:.0f}" if isinstance(value, int | float) and value >= 1 else str(value)


def poisoned(text: str) -> Reply | None:
    """Return the refusal of a message with a word such as `poison-403`; None if it has none."""
    match = _POISON.search(text)
    if match is None:
        return None
    status = int(match[1])
    message = _POISON_TEXTS.get(status, "The content of this request is not accepted.")
    headers = {"Retry-After": "600"} if status == 429 else {}
    error = {"message": message, "type": "invalid_request_error", "param": None, "code": None}
    return Reply(status=status, error=error, headers=headers)
