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


def sample(second: int, **more: float) -> Sample:
    usual = {"files": 40, "sockets": 30, "tasks": 60, "in_flight": 0, "stall_ms": 2.0}
    memory = {"rss_kib": 60_000, "used_kib": 50_000}
    return {"at_s": float(second), "stolen_ms": 1.0, **memory, **usual, **more}


def noise(second: int) -> float:
    return random.Random(second).uniform(-3000, 3000)


# What memory does, and whether it leaks. The last are what a comparison of two ends takes for it.
SHAPES: dict[str, tuple[Shape, bool]] = {
    "flat": (lambda second: 0, False),
    "noisy": (noise, False),
    "a leak": (lambda second: second * 50, True),
    "a leak in noise": (lambda second: second * 50 + noise(second), True),
    "warm-up": (lambda second: min(second, 100) * 300, False),
    "a sawtooth": (lambda second: second % 60 * 400, False),
    "a burst at the end": (lambda second: 40_000 if second > SECONDS * 0.85 else 0, False),
    "a dip at the start": (lambda second: -40_000 if 150 < second < 200 else 0, False),
}


@pytest.mark.parametrize("name", ["used_kib", "rss_kib"])
@pytest.mark.parametrize("shape", SHAPES)
def test_only_a_leak_is_growth(shape: str, name: str) -> None:
    of, leaks = SHAPES[shape]
    loaded = [sample(second, **{name: 60_000 + of(second)}) for second in range(SECONDS)]
    found = flatness.verdict(loaded, sample(0), sample(SECONDS))
    bad = [finding.figure for finding in found if not finding.good]
    assert bad == ([f"growth of {flatness.MEMORY[name]}"] if leaks else [])


def test_what_malloc_keeps_is_no_growth_once_it_has_stopped() -> None:
    kept = [16_000 * (second > SECONDS * 0.4) for second in range(SECONDS)]
    loaded = [sample(second, rss_kib=60_000 + more) for second, more in enumerate(kept)]
    assert all(f.good for f in flatness.verdict(loaded, sample(0), sample(SECONDS)))


def test_growth_is_that_of_the_whole_time() -> None:
    loaded = [sample(second, rss_kib=second * 10) for second in range(SECONDS)]
    assert flatness.growth(loaded, "rss_kib") == pytest.approx(SECONDS * 10, rel=0.02)
    assert flatness.growth([sample(0)], "rss_kib") == 0
    assert flatness.MOST_GROWTH_KIB > 0


@pytest.mark.parametrize("name", ["files", "sockets", "tasks"])
def test_what_stays_open_is_found(name: str) -> None:
    loaded = [sample(second, **{name: 40 + second / 5}) for second in range(SECONDS)]
    found = flatness.verdict(loaded, sample(0), sample(SECONDS, **{name: 160}))
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


def test_stalls_count_only_while_no_other_program_has_the_cores() -> None:
    def stalls(busy: int) -> str:
        loaded = [
            sample(n, stall_ms=90, stolen_ms=99) if n < busy else sample(n) for n in range(SECONDS)
        ]
        *_, found = flatness.verdict(loaded, sample(0), sample(SECONDS))
        return f"{found.found}, {found.good}"

    assert stalls(SECONDS // 2) == "2 (longest 2), True"
    assert stalls(SECONDS - 9) == "not known: the machine is busy, False"
