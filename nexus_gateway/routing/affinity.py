"""Keeps a conversation at one deployment, so that its provider's prompt cache is of use.

Weighted rendezvous hashing: for a conversation c and deployments i with weights w_i, the smallest
-ln(h(c, i)) / w_i is chosen, where h is a hash in (0, 1). These are exponential variables with the
rates w_i, so i is the smallest with probability w_i / sum(w): the same shares as a draw by weight.
There is no table: every worker and every gateway chooses the same. If a deployment leaves, only its
own conversations move, and they return with it.
(Thaler, Ravishankar, "Using name-based mappings to increase hit rates", 1998; Schindelhauer,
Schomaker, "Weighted distributed hash tables", 2005.)
"""

from __future__ import annotations

from hashlib import blake2b
from math import log
from random import Random
from typing import NamedTuple

# Hit: at the deployment where the conversation belongs; moved: that one could not serve it.
HIT, MOVED, NONE = "hit", "moved", "none"
_MASK = 2**64 - 1
_STEP = 0x9E3779B97F4A7C15  # 2**64 / golden ratio, odd
_MIX = 0xD6E8FEB86659FD93
_UNIT = 2.0**-53


class RoutingView(NamedTuple):
    """What a policy may know of the request that it chooses for.

    Args:
        conversation: a number that all requests of a conversation share; None if there is no key.
        model: the upstream's model if the caller named one.
        images: whether the request holds images.
        attempt: 1 for the first.
    """

    conversation: int | None = None
    model: str | None = None
    images: bool = False
    attempt: int = 1


def seed_of(*identity: str) -> int:
    """Return the number of a deployment; it is the same in every process."""
    digest = blake2b("\0".join(identity).encode("utf-8", "surrogatepass"), digest_size=8)
    return int.from_bytes(digest.digest(), "big")


def _hash(number: int) -> float:
    """Return a number in (0, 1): multiply, xor and shift, until each bit depends on all others."""
    number = number * _STEP & _MASK
    number = (number ^ number >> 32) * _MIX & _MASK
    number = (number ^ number >> 32) * _MIX & _MASK
    return ((number ^ number >> 32) >> 11 | 1) * _UNIT


def distance(conversation: int, seed: int) -> float:
    """Return -ln(h(c, i)), an exponential variable of rate 1."""
    return -log(_hash(conversation * _MIX ^ seed))


class RepeatableRandom(Random):
    """Random numbers that are the same each time for the same conversation."""

    def __init__(self, conversation: int) -> None:
        self._state = conversation * _MIX

    def random(self) -> float:
        self._state = self._state + _STEP & _MASK
        return _hash(self._state)
