"""What the page is to say of an instance, for everything that can be known of one.

`ROWS` is the table: each names some of what `CELLS` varies and leaves the rest open, and between
them they cover every cell exactly once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import product
from typing import Any

CELLS: dict[str, tuple[Any, ...]] = {
    "enabled": (True, False),
    "circuit": ("CLOSED", "OPEN", "HALF_OPEN"),
    "park": (None, "bad_key", "rate_limited", "resting", "something new"),
    "park_s": (30, 90),  # the probe of an open circuit is due after 60
    "judged": (True, False),
    "asked": (0, 9),
    "success": (0.0, 30.0, 75.0, 95.0, 100.0),
    "wait": (10.0, 60.0),
    "reason": (None, "answered 500"),
}
Cell = dict[str, Any]
Row = tuple[dict[str, tuple[Any, ...]], tuple[str, str, str]]
ON: dict[str, tuple[Any, ...]] = {"enabled": (True,)}
OPEN = {**ON, "circuit": ("OPEN",)}
NOT_OPEN = {**ON, "circuit": ("CLOSED", "HALF_OPEN")}
FREE = {**ON, "circuit": ("CLOSED",), "park": (None,)}
JUDGED = {**FREE, "judged": (True,)}
GOOD = ({"success": (95.0,)}, {"success": (100.0,), "reason": (None,)})
RATE_LIMITED = ("Rate limited", "wait", "out")
RESTING = ("Resting", "wait", "out")
PARKED = ("Parked", "wait", "out")
UNPROVEN = ("Unproven", "probe", "probe")
LATER = {"park_s": (90,)}
# What of a cell holds, and then the word, the kind and what the headline counts it as.
ROWS: list[Row] = [
    ({"enabled": (False,)}, ("Off", "off", "off")),
    ({**ON, "park": ("bad_key",)}, ("Key refused", "bad", "out")),
    ({**OPEN, "park": (None,)}, ("Circuit open", "bad", "out")),
    (
        {**OPEN, "park": ("rate_limited", "resting", "something new"), "park_s": (30,)},
        ("Circuit open", "bad", "out"),
    ),
    ({**OPEN, "park": ("rate_limited",), **LATER}, RATE_LIMITED),
    ({**OPEN, "park": ("resting",), **LATER}, RESTING),
    ({**OPEN, "park": ("something new",), **LATER}, PARKED),
    ({**NOT_OPEN, "park": ("rate_limited",)}, RATE_LIMITED),
    ({**NOT_OPEN, "park": ("resting",)}, RESTING),
    ({**NOT_OPEN, "park": ("something new",)}, PARKED),
    ({**ON, "circuit": ("HALF_OPEN",), "park": (None,)}, ("Half open", "probe", "probe")),
    ({**FREE, "judged": (False,), "reason": (None,)}, ("Ready", "ready", "ready")),
    ({**FREE, "judged": (False,), "reason": ("answered 500",)}, UNPROVEN),
    ({**JUDGED, "success": (100.0,), "reason": ("answered 500",)}, UNPROVEN),
    ({**JUDGED, "success": (0.0,)}, ("Failing", "bad", "out")),
    ({**JUDGED, "success": (30.0,)}, ("Failing often", "bad", "serves")),
    ({**JUDGED, "success": (75.0,)}, ("Failing at times", "weak", "serves")),
    *(({**JUDGED, **good, "wait": (60.0,)}, ("Slow", "weak", "serves")) for good in GOOD),
    *(({**JUDGED, **good, "wait": (10.0,)}, ("Serving", "good", "serves")) for good in GOOD),
]


def cells() -> Iterator[Cell]:
    """Return every cell of the table."""
    for values in product(*CELLS.values()):
        yield dict(zip(CELLS, values, strict=True))


def said_of(cell: Mapping[str, Any]) -> tuple[str, str, str]:
    """Return the word, the kind and the counting of the one row that a cell belongs to."""
    found = [said for row, said in ROWS if all(cell[name] in row[name] for name in row)]
    (only,) = found
    return only


def instance(name: str = "A", **cell: Any) -> dict[str, Any]:
    """Return an instance as the gateway tells of it; what is not given is a sound one's."""
    sound = {name: values[0] for name, values in CELLS.items()}
    it = {**sound, "asked": 9, "success": 100.0, **cell}
    return {
        "name": name,
        "enabled": it["enabled"],
        "circuitState": it["circuit"],
        "probeInMs": 60_000 if it["circuit"] == "OPEN" else 0,
        "parkReason": it["park"],
        "parkedForMs": it["park_s"] * 1000 if it["park"] else 0,
        "lastReason": it["reason"],
        "metrics": {
            "totalRequests": it["asked"],
            "judged": it["judged"],
            "successRate": f"{it['success']}%",
            "avgLatencyMs": it.get("latency_ms", 100),
            "latencyShare": f"{it['wait']}%",
            "healthScore": f"{it['success'] * (100 - it['wait']) / 100:.1f}%",
        },
    }


FAILED, KEY = "answered 500", "the key was refused (401)"
# Of an instance: what stands in its row beside the word and below it, and in the sentence.
BESIDE: list[tuple[Cell, str, str, str]] = [
    ({}, "", "", ""),
    ({"asked": 0, "judged": False}, "not asked yet", "", ""),
    ({"judged": False}, "no answer lately", "", ""),
    ({"success": 95.0, "reason": FAILED}, "", "last time: answered 500", ""),
    ({"success": 0.0, "reason": FAILED}, "", FAILED, "A: failing, answered 500"),
    ({"success": 75.0, "reason": None}, "", "", "A: failing at times"),
    (
        {"circuit": "OPEN", "reason": FAILED},
        "probe in 58 s",
        FAILED,
        "A: circuit open, answered 500",
    ),
    (
        {"circuit": "HALF_OPEN", "reason": FAILED},
        "awaits a probe",
        FAILED,
        "A: half open, answered 500",
    ),
    (
        {"reason": "rate limited"},
        "awaits a probe",
        "last time: rate limited",
        "A: unproven, rate limited",
    ),
    ({"park": "rate_limited", "reason": "rate limited"}, "back in 28 s", "", "A: rate limited"),
    ({"park": "resting", "park_s": 90, "circuit": "OPEN"}, "probe in 88 s", "", "A: resting"),
    ({"park": "bad_key", "reason": KEY}, "back in 28 s", KEY, f"A: {KEY}"),
    ({"park": "bad_key", "circuit": "OPEN"}, "probe in 58 s", "", "A: key refused"),
    ({"enabled": False, "park": "bad_key", "reason": KEY}, "", "", ""),
]
SERVES: Cell = {}
SLOW: Cell = {"wait": 60.0}
READY: Cell = {"judged": False, "asked": 0}
SHUT: Cell = {"circuit": "OPEN"}
HALF: Cell = {"circuit": "HALF_OPEN"}
OFF: Cell = {"enabled": False}
# Of all instances: the headline with its kind, and the tab's title.
HEADLINES: list[tuple[list[Cell], str, str, str]] = [
    ([], "off", "There is no instance: set a provider's key.", "No instance"),
    ([SERVES], "good", "The one instance serves.", "All serve"),
    ([SLOW], "weak", "The one instance serves badly.", "All serve"),
    ([READY], "ready", "The one instance is ready.", "All ready"),
    ([HALF], "bad", "Nobody serves; the one instance waits for a probe.", "Nobody serves"),
    ([SHUT], "bad", "Nobody serves.", "Nobody serves"),
    ([OFF], "bad", "The one instance is switched off.", "All off"),
    ([OFF] * 2, "bad", "Every instance is switched off.", "All off"),
    ([SERVES] * 2, "good", "Both instances serve.", "All serve"),
    ([SERVES] * 3, "good", "All 3 instances serve.", "All serve"),
    ([SERVES, SLOW, SERVES], "weak", "All 3 instances serve, 1 of them badly.", "All serve"),
    ([SERVES, SERVES, OFF], "good", "2 of 3 instances serve; 1 is off.", "2 of 3 serve"),
    ([SERVES, READY], "good", "1 of 2 instances serves; 1 is ready.", "1 of 2 serves"),
    ([SERVES, SHUT], "weak", "1 of 2 instances serves.", "1 of 2 serves"),
    (
        [SERVES, SLOW, SHUT, READY, READY, OFF],
        "weak",
        "2 of 6 instances serve, 1 of them badly; 2 are ready, 1 is off.",
        "2 of 6 serve",
    ),
    ([READY] * 2, "ready", "Both instances are ready.", "All ready"),
    ([READY, SHUT, OFF], "weak", "1 of 3 instances is ready; 1 is off.", "1 of 3 ready"),
    ([HALF] * 2, "bad", "Nobody serves; 2 wait for a probe.", "Nobody serves"),
    ([HALF, SHUT, OFF], "bad", "Nobody serves; 1 waits for a probe, 1 is off.", "Nobody serves"),
]
