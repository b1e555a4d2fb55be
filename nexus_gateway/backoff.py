"""How long to wait before going back to a provider that has just failed."""

from __future__ import annotations

from random import Random

STEPS_MS = (100, 200, 400, 800, 1600, 2000)


def delay_s(retry: int, rng: Random) -> float:
    """Return the delay before a retry, in seconds.

    Args:
        retry: 0 for the first.
        rng: chance: the delay is drawn from [half, whole] of its step, so that callers who
            failed together do not return together.
    """
    whole_s = STEPS_MS[min(retry, len(STEPS_MS) - 1)] / 1000
    return rng.uniform(whole_s / 2, whole_s)
