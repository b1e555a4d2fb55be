"""The measurement of what a request costs: what it compares, and when it does not."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import pytest

RECORD = runpy.run_path(str(Path(__file__).resolve().parents[2] / "bench" / "cost_record.py"))
RECORDED = {
    "ratios": {"small answer": 1.5, "32 chunks": 1.2},
    "calls": {"small answer": 300.0, "32 chunks": 400.0},
}


def found(**changes: dict[str, float]) -> dict[str, Any]:
    return {what: {**figures, **changes.get(what, {})} for what, figures in RECORDED.items()}


def test_what_is_recorded_are_ratios_to_bare_and_calls() -> None:
    of_kind = {"bare": {"instructions": 400.0, "calls": 9}, "gateway": {"instructions": 500.0}}
    of_kind["gateway"]["calls"] = 321.04
    result = RECORD["summary"]({"small answer": of_kind})
    assert result["ratios"] == {"small answer": 1.25}
    assert result["calls"] == {"small answer": 321.0}
    assert {"python", "aiohttp"} <= result["versions"].keys()


@pytest.mark.parametrize(
    ("changes", "lines"),
    [
        ({}, []),
        ({"ratios": {"small answer": 1.52}, "calls": {"32 chunks": 403}}, []),
        (
            {"ratios": {"small answer": 1.54, "32 chunks": 0.9}},
            ["small answer: ratios 1.5 -> 1.54 (+2.7%)"],
        ),
        ({"calls": {"32 chunks": 405}}, ["32 chunks: calls 400.0 -> 405 (+1.2%)"]),
    ],
)
def test_growth_beyond_noise_is_reported(
    changes: dict[str, dict[str, float]], lines: list[str]
) -> None:
    assert RECORD["growth"](RECORDED, found(**changes)) == lines
