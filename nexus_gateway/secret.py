"""A credential that cannot be printed by accident."""

from __future__ import annotations

# A shorter one is no key that anybody issues, and masking it would garble ordinary words.
SHORTEST_SECRET = 8


class Secret:
    """Hold a key; its str, repr and format are `***`. Only `reveal()` gives it away."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def reveal(self) -> str:
        """Return the key itself, for a header and nothing else."""
        return self._value

    def __bool__(self) -> bool:
        return bool(self._value)

    def __repr__(self) -> str:
        return "***"

    def __format__(self, spec: str) -> str:
        return "***"

    def __reduce__(self) -> tuple[object, ...]:
        raise TypeError("a Secret does not travel")
