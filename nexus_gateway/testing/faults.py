"""The faults of a fake upstream, by name: one table for the help, the parsing and the effects.

What is written on a command line or in a script is `NAME` or `NAME=VALUE`, for one instance
`N:NAME=VALUE`. A set of faults is a mapping from names to values, as it travels in JSON.
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
# These befall a connection before anybody has said anything.
AT_THE_DOOR = ("close", "tls")
LONGEST_MS = 86_400_000
LARGEST_EVENT = 1024 * 1024 * 1024
PAGE = b"<!doctype html><title>Bad Gateway</title><h1>Not what you have asked for</h1>"
_ITEM = re.compile(r"(?:(?P<number>[0-9]{1,4}):)?(?P<name>[a-z0-9-]+)(?:=(?P<value>.*))?")


class WrongFault(ValueError):
    """A fault that there is not, or a value that it cannot have; the text is fit for a user."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that can go wrong.

    Args:
        name: as it is written.
        value: what its value means, "" where it has none.
        default: its value where only the name is written.
        help: one line.
        effect: what it makes of a reply, from its value and chance.
        most: the largest value; 0 for a value that is no number.
    """

    name: str
    value: str
    default: Value
    help: str
    effect: Effect
    most: float = 0

    @property
    def written(self) -> str:
        """How it is written."""
        return f"{self.name}={self.value}" if self.value else self.name

    def read(self, written: object) -> Value:
        """Return the value that was written: text or a number; None for the default.

        Raises:
            WrongFault: it cannot be used.
        """
        if written is None or (not self.value and written is True):
            return self.default
        if not self.value:
            raise WrongFault(f"{self.name} takes no value.")
        if not self.most:
            if not isinstance(written, str) or not written or not written.isprintable():
                raise WrongFault(f"{self.name}={self.value} must be text.")
            return written
        number = _number(written)
        if number is None or not 0 <= number <= self.most:
            limit = f"{self.most:.0f}"
            raise WrongFault(f"{self.name}={self.value} must be a number from 0 to {limit}.")
        if number == int(number):
            return int(number)
        if self.value in ("K", "CODE", "BYTES"):
            raise WrongFault(f"{self.name}={self.value} must be a whole number.")
        return number


def _number(written: object) -> float | None:
    if isinstance(written, bool) or not isinstance(written, str | int | float):
        return None
    try:
        number = float(written)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _late(ms: float) -> Mapping[str, Any]:
    return {"head_delay_s": ms / 1000}


def _drip(ms: float, _: Random) -> Mapping[str, Any]:
    return {"delay_s": ms / 1000}


def _status(code: float, _: Random) -> Mapping[str, Any]:
    return {"status": int(code)}


def _limited(seconds: float, _: Random) -> Mapping[str, Any]:
    return {"status": 429, "headers": {"Retry-After": f"{seconds:g}"}}


def _elsewhere(url: str, _: Random) -> Mapping[str, Any]:
    return {"status": 302, "headers": {"Location": url}}


def _page(*_: object) -> Mapping[str, Any]:
    return {"body": PAGE, "content_type": "text/html"}


def _garbage(words: float, rng: Random) -> Mapping[str, Any]:
    return {"garbage_after": int(words), "whole_fate": Fate.END}


def _error_event(words: float, rng: Random) -> Mapping[str, Any]:
    after = int(words)
    ending = {"error_after": after, "end_after": after}
    return {**ending, "role_first": after > 0, "whole_fate": Fate.ERROR}


def _silent(*_: object) -> Mapping[str, Any]:
    return {"hang_after": 0, "whole_fate": Fate.HANG}


def _ending(name: str, fate: Fate) -> Effect:
    return lambda words, _: {name: int(words), "whole_fate": fate}


def _always(**fields: Any) -> Effect:
    return lambda *_: fields


FAULTS: tuple[Fault, ...] = (
    Fault("delay", "MS", 500, "answer later by so much", lambda ms, _: _late(ms), LONGEST_MS),
    Fault(
        "jitter",
        "MS",
        500,
        "answer later by up to so much, drawn each time",
        lambda ms, rng: _late(rng.uniform(0, ms)),
        LONGEST_MS,
    ),
    Fault("drip", "MS", 50, "wait so long between words", _drip, LONGEST_MS),
    Fault("bytewise", "", None, "send each byte by itself", _always(bytewise=True)),
    Fault("crlf", "", None, "end lines with CR LF", _always(newline="\r\n")),
    Fault("no-done", "", None, "leave the last event, [DONE], out", _always(done=False)),
    Fault(
        "errors",
        "P",
        0.3,
        "answer 500 with this chance",
        lambda chance, rng: {"status": 500} if rng.random() < chance else {},
        1,
    ),
    Fault("status", "CODE", 500, "answer with this status and an error", _status, 599),
    Fault("429", "S", 1, "answer 429 with a Retry-After of so much", _limited, 86_400),
    Fault("401", "", None, "refuse the key", _always(status=401)),
    Fault("redirect", "URL", "http://127.0.0.1:9/v1", "answer 302 with this Location", _elsewhere),
    Fault("html", "", None, "answer 200 with an HTML page", _page),
    Fault("empty", "", None, "answer 200 with nothing", _always(body=b"")),
    Fault("hang", "", None, "never answer", _always(hang=True)),
    Fault("reset", "", None, "take the request, then reset the connection", _always(reset=True)),
    Fault("close", "", None, "close each connection at once", _always(reset=True)),
    Fault("tls", "", None, "fail each TLS handshake", _always(reset=True)),
    Fault("role-hang", "", None, "begin a stream with a role, then fall silent", _silent),
    Fault(
        "comments",
        "",
        None,
        "send comments for ever, and never a word",
        _always(comments_only=True, whole_fate=Fate.HANG),
    ),
    Fault("cut", "K", 3, "break the connection after K words", _ending("cut_after", Fate.CUT), 1e6),
    Fault("end", "K", 3, "end properly, but after K words", _ending("end_after", Fate.END), 1e6),
    Fault("stall", "K", 3, "fall silent after K words", _ending("hang_after", Fate.HANG), 1e6),
    Fault(
        "error-event",
        "K",
        3,
        "send an error event after K words; 0: as the first",
        _error_event,
        1e6,
    ),
    Fault("garbage", "K", 3, "send an event that is no JSON after K words", _garbage, 1e6),
    Fault(
        "oversized",
        "BYTES",
        16 * 1024 * 1024,
        "send an event so large before the first word",
        lambda size, _: {"oversized": int(size)},
        LARGEST_EVENT,
    ),
    Fault(CHANCE, "P", 1, "the others befall only this share of the requests", _always(), 1),
)
_BY_NAME = {fault.name: fault for fault in FAULTS}


def read_faults(written: object) -> dict[str, Value]:
    """Read a set of faults as it came in JSON: an object of names and values.

    A value of `null` or `true` means the default.

    Raises:
        WrongFault: something of it cannot be used.
    """
    if not isinstance(written, dict):
        raise WrongFault('faults must be an object such as {"status": 500, "delay": 200}.')
    return {name: _named(name).read(None if v is True else v) for name, v in written.items()}


def _named(name: object) -> Fault:
    found = _BY_NAME.get(str(name))
    if found is None:
        raise WrongFault(f"there is no fault {str(name)[:40]!r}; there are: {', '.join(_BY_NAME)}.")
    return found


def assign(items: Iterable[str], instances: int) -> dict[int, dict[str, Value]]:
    """Read faults as they are written on a command line.

    Args:
        items: each `NAME`, `NAME=VALUE`, `N:NAME` or `N:NAME=VALUE`; `ok` takes faults away.
        instances: how many there are.

    Returns:
        The whole set of each instance that is meant, by number, 1 the first.

    Raises:
        WrongFault: something of it cannot be used.
    """
    shared: dict[str, Value] = {}
    own: dict[int, dict[str, Value]] = {}
    everybody = False
    for item in items:
        number, name, value = _split(item, instances)
        everybody = everybody or number is None
        fault = {} if name == OK else {name: _named(name).read(value)}
        (shared if number is None else own.setdefault(number, {})).update(fault)
    meant = range(1, instances + 1) if everybody else sorted(own)
    return {number: {**shared, **own.get(number, {})} for number in meant}


def _split(item: str, instances: int) -> tuple[int | None, str, str | None]:
    match = _ITEM.fullmatch(item.strip())
    if match is None:
        raise WrongFault(f"{item[:40]!r} is no fault; write NAME, NAME=VALUE or N:NAME=VALUE.")
    number = None if match["number"] is None else int(match["number"])
    if number is not None and not 1 <= number <= instances:
        raise WrongFault(f"{item[:40]!r}: there is no instance {number}; there are {instances}.")
    if match["name"] == OK and match["value"] is not None:
        raise WrongFault(f"{OK} takes no value.")
    return number, match["name"], match["value"]


def befalls(faults: Faults, rng: Random) -> bool:
    """Draw whether an instance's faults befall one request."""
    chance = float(faults.get(CHANCE, 1) or 0)
    return bool(faults) and rng.random() < chance


def spoilt(reply: Reply, faults: Faults, rng: Random) -> Reply:
    """Return a reply with faults; those later in the table win over earlier ones."""
    fields: dict[str, Any] = {}
    for fault in FAULTS:
        if fault.name in faults:
            effect = fault.effect(faults[fault.name], rng)
            late_s = fields.get("head_delay_s", 0.0) + effect.get("head_delay_s", 0.0)
            fields |= {**effect, "head_delay_s": late_s}
    return replace(reply, **fields)


def described() -> Iterator[str]:
    """Give a line for each fault: how it is written, what it does, its default."""
    for fault in FAULTS:
        default = f" ({shown(fault.default)})" if fault.value else ""
        yield f"  {fault.written:<20}{fault.help}{default}"


def shown(value: Value) -> str:
    """Return a value as it is written."""
    return f"{value:.0f}" if isinstance(value, int | float) and value >= 1 else str(value)
