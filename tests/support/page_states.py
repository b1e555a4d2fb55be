"""The text the page must show for every combination of an instance's properties.

`ROWS` is the table: each row fixes some of the properties in `CELLS` and leaves the rest open.
Together they cover every cell exactly once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import product
from typing import Any

CELLS: dict[str, tuple[Any, ...]] = {
    "enabled": (True, False),
    "circuit": ("CLOSED", "OPEN", "HALF_OPEN"),
    "park": (None, "bad_key", "unknown_model", "rate_limited", "resting", "something new"),
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
RATE_LIMITED = ("Rate limited", "wait", "unavailable")
COOLING_DOWN = ("Cooling down", "wait", "unavailable")
PARKED = ("Parked", "wait", "unavailable")
UNPROVEN = ("Unproven", "probe", "probing")
LATER = {"park_s": (90,)}
# The matching cells, then the word, the kind and the group that the headline counts it in.
ROWS: list[Row] = [
    ({"enabled": (False,)}, ("Off", "off", "off")),
    ({**ON, "park": ("bad_key",)}, ("Key refused", "bad", "unavailable")),
    ({**ON, "park": ("unknown_model",)}, ("Model unknown", "bad", "unavailable")),
    ({**OPEN, "park": (None,)}, ("Circuit open", "bad", "unavailable")),
    (
        {**OPEN, "park": ("rate_limited", "resting", "something new"), "park_s": (30,)},
        ("Circuit open", "bad", "unavailable"),
    ),
    ({**OPEN, "park": ("rate_limited",), **LATER}, RATE_LIMITED),
    ({**OPEN, "park": ("resting",), **LATER}, COOLING_DOWN),
    ({**OPEN, "park": ("something new",), **LATER}, PARKED),
    ({**NOT_OPEN, "park": ("rate_limited",)}, RATE_LIMITED),
    ({**NOT_OPEN, "park": ("resting",)}, COOLING_DOWN),
    ({**NOT_OPEN, "park": ("something new",)}, PARKED),
    ({**ON, "circuit": ("HALF_OPEN",), "park": (None,)}, ("Half open", "probe", "probing")),
    ({**FREE, "judged": (False,), "reason": (None,)}, ("Ready", "ready", "ready")),
    ({**FREE, "judged": (False,), "reason": ("answered 500",)}, UNPROVEN),
    ({**JUDGED, "success": (100.0,), "reason": ("answered 500",)}, UNPROVEN),
    ({**JUDGED, "success": (0.0,)}, ("Failing", "bad", "unavailable")),
    ({**JUDGED, "success": (30.0,)}, ("Failing often", "bad", "serving")),
    ({**JUDGED, "success": (75.0,)}, ("Failing sometimes", "weak", "serving")),
    *(({**JUDGED, **good, "wait": (60.0,)}, ("Slow", "weak", "serving")) for good in GOOD),
    *(({**JUDGED, **good, "wait": (10.0,)}, ("Serving", "good", "serving")) for good in GOOD),
]


def cells() -> Iterator[Cell]:
    """Return every cell of the table."""
    for values in product(*CELLS.values()):
        yield dict(zip(CELLS, values, strict=True))


def expected_state(cell: Mapping[str, Any]) -> tuple[str, str, str]:
    """Return the word, the kind and the group of the one row that matches a cell."""
    (state,) = [state for row, state in ROWS if all(cell[name] in row[name] for name in row)]
    return state


def instance(name: str = "A", **cell: Any) -> dict[str, Any]:
    """Return an instance as the gateway sends it; by default a healthy one."""
    healthy = {name: values[0] for name, values in CELLS.items()}
    values = {**healthy, "asked": 9, "success": 100.0, **cell}
    return {
        "name": name,
        "enabled": values["enabled"],
        "circuitState": values["circuit"],
        "probeInMs": 60_000 if values["circuit"] == "OPEN" else 0,
        "parkReason": values["park"],
        "parkedForMs": values["park_s"] * 1000 if values["park"] else 0,
        "lastReason": values["reason"],
        "metrics": {
            "totalRequests": values["asked"],
            "judged": values["judged"],
            "successRate": f"{values['success']}%",
            "avgLatencyMs": values.get("latency_ms", 100),
            "latencyShare": f"{values['wait']}%",
            "healthScore": f"{values['success'] * (100 - values['wait']) / 100:.1f}%",
        },
    }


FAILED, KEY = "answered 500", "the key was refused (401)"
# For an instance: the text beside the word in its row, the text below it, and the reasons.
ROW_TEXTS: list[tuple[Cell, str, str, str]] = [
    ({}, "", "", ""),
    ({"asked": 0, "judged": False}, "no requests yet", "", ""),
    ({"judged": False}, "no recent answer", "", ""),
    ({"success": 95.0, "reason": FAILED}, "", "last failure: answered 500", ""),
    ({"success": 0.0, "reason": FAILED}, "", FAILED, "A: failing, answered 500"),
    ({"success": 75.0, "reason": None}, "", "", "A: failing sometimes"),
    (
        {"circuit": "OPEN", "reason": FAILED},
        "probe in 58 s",
        FAILED,
        "A: circuit open, answered 500",
    ),
    (
        {"circuit": "HALF_OPEN", "reason": FAILED},
        "awaiting a probe",
        FAILED,
        "A: half open, answered 500",
    ),
    (
        {"reason": "rate limited"},
        "awaiting a probe",
        "last failure: rate limited",
        "A: unproven, rate limited",
    ),
    ({"park": "rate_limited", "reason": "rate limited"}, "back in 28 s", "", "A: rate limited"),
    ({"park": "resting", "park_s": 90, "circuit": "OPEN"}, "probe in 88 s", "", "A: cooling down"),
    ({"park": "bad_key", "reason": KEY}, "back in 28 s", KEY, f"A: {KEY}"),
    ({"park": "bad_key", "circuit": "OPEN"}, "probe in 58 s", "", "A: key refused"),
    ({"enabled": False, "park": "bad_key", "reason": KEY}, "", "", ""),
]
SERVING: Cell = {}
SLOW: Cell = {"wait": 60.0}
READY: Cell = {"judged": False, "asked": 0}
OPEN_CIRCUIT: Cell = {"circuit": "OPEN"}
HALF_OPEN: Cell = {"circuit": "HALF_OPEN"}
OFF: Cell = {"enabled": False}
# For all instances: the headline with its kind, and the tab's title.
HEADLINES: list[tuple[list[Cell], str, str, str]] = [
    ([], "off", "No instance is configured: set a provider's key.", "No instance"),
    ([SERVING], "good", "The only instance is serving.", "All serving"),
    ([SLOW], "weak", "The only instance is serving, but degraded.", "All serving"),
    ([READY], "ready", "The only instance is ready.", "All ready"),
    (
        [HALF_OPEN],
        "bad",
        "The only instance is not serving; it is awaiting a probe.",
        "None serving",
    ),
    ([OPEN_CIRCUIT], "bad", "The only instance is not serving.", "None serving"),
    ([OFF], "bad", "The only instance is switched off.", "All off"),
    ([OFF] * 2, "bad", "All instances are switched off.", "All off"),
    ([SERVING] * 2, "good", "Both instances are serving.", "All serving"),
    ([SERVING] * 3, "good", "All 3 instances are serving.", "All serving"),
    (
        [SERVING, SLOW, SERVING],
        "weak",
        "All 3 instances are serving, 1 of them degraded.",
        "All serving",
    ),
    ([SERVING, SERVING, OFF], "good", "2 of 3 instances are serving; 1 is off.", "2 of 3 serving"),
    ([SERVING, READY], "good", "1 of 2 instances is serving; 1 is ready.", "1 of 2 serving"),
    ([SERVING, OPEN_CIRCUIT], "weak", "1 of 2 instances is serving.", "1 of 2 serving"),
    (
        [SERVING, SLOW, OPEN_CIRCUIT, READY, READY, OFF],
        "weak",
        "2 of 6 instances are serving, 1 of them degraded; 2 are ready, 1 is off.",
        "2 of 6 serving",
    ),
    ([READY] * 2, "ready", "Both instances are ready.", "All ready"),
    ([READY, OPEN_CIRCUIT, OFF], "weak", "1 of 3 instances is ready; 1 is off.", "1 of 3 ready"),
    ([HALF_OPEN] * 2, "bad", "No instance is serving; 2 are awaiting a probe.", "None serving"),
    (
        [HALF_OPEN, OPEN_CIRCUIT, OFF],
        "bad",
        "No instance is serving; 1 is awaiting a probe, 1 is off.",
        "None serving",
    ),
]
