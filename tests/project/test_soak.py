"""The verdict of `bench/soak.py`: it finds a leak, and nothing else."""

from __future__ import annotations

import importlib.util
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

FILE = Path(__file__).resolve().parents[2] / "bench" / "flatness.py"

SECONDS = 600
Sample = dict[str, float]
Shape = Callable[[int], float]


def loaded_module() -> Any:
    """Return bench/flatness.py; its folder has modules of the same names as tests/support."""
    spec = importlib.util.spec_from_file_location("flatness", FILE)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["flatness"] = module  # dataclasses look it up
    spec.loader.exec_module(module)
    return module


flatness = loaded_module()


def sample(second: int, rss_kib: float = 60_000, **more: float) -> Sample:
    usual = {"files": 40, "sockets": 30, "tasks": 60, "in_flight": 0, "stall_ms": 2.0}
    return {"at_s": float(second), "rss_kib": rss_kib, **usual, **more}


def noise(second: int) -> float:
    return random.Random(second).uniform(-3000, 3000)


# What memory does, and whether it leaks. The last are what a comparison of two ends takes for it.
SHAPES: dict[str, tuple[Shape, bool]] = {
    "flat": (lambda second: 0, False),
    "noisy": (noise, False),
    "a leak": (lambda second: second * 40, True),
    "a leak in noise": (lambda second: second * 40 + noise(second), True),
    "warm-up": (lambda second: min(second, 100) * 300, False),
    "a sawtooth": (lambda second: second % 60 * 400, False),
    "a burst at the end": (lambda second: 40_000 if second > SECONDS * 0.85 else 0, False),
    "a dip at the start": (lambda second: -40_000 if 150 < second < 200 else 0, False),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_only_a_leak_is_growth(shape: str) -> None:
    of, leaks = SHAPES[shape]
    loaded = [sample(second, 60_000 + of(second)) for second in range(SECONDS)]
    first, *_ = flatness.verdict(loaded, sample(0), sample(SECONDS))
    assert first.figure == "growth of RSS, MiB"
    assert first.good is not leaks


def test_growth_is_that_of_the_whole_time() -> None:
    loaded = [sample(second, second * 10) for second in range(SECONDS)]
    assert flatness.growth(loaded, "rss_kib") == pytest.approx(SECONDS * 10, rel=0.02)
    assert flatness.growth([sample(0)], "rss_kib") == 0
    assert flatness.MOST_GROWTH_KIB > 0


@pytest.mark.parametrize("name", ["files", "sockets", "tasks"])
def test_what_stays_open_is_found(name: str) -> None:
    loaded = [sample(second, **{name: 40 + second / 10}) for second in range(SECONDS)]
    found = flatness.verdict(loaded, sample(0), sample(SECONDS, **{name: 100}))
    bad = [finding.figure for finding in found if not finding.good]
    assert bad == [f"growth of {name}", f"{name} at rest"]


def test_one_stall_is_no_finding_and_many_are() -> None:
    for every, good in ((300, True), (20, False)):
        loaded = [
            sample(second, stall_ms=400 if second % every == 7 else 2) for second in range(SECONDS)
        ]
        *_, stalls = flatness.verdict(loaded, sample(0), sample(SECONDS))
        assert stalls.good is good
        assert "longest 400" in stalls.found
