"""A credential that cannot be printed by accident."""

from __future__ import annotations

# No service issues shorter keys, and masking them would garble ordinary words.
SHORTEST_SECRET = 8


class Secret:
    """Hold a key. Its str, repr and format are `***`; only `reveal()` returns it."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def reveal(self) -> str:
        """Return the key itself, to be sent in a header and nowhere else."""
        return self._value

    def __bool__(self) -> bool:
        return bool(self._value)

    def __repr__(self) -> str:
        return "***"

    def __format__(self, spec: str) -> str:
        return "***"

    def __reduce__(self) -> tuple[object, ...]:
        raise TypeError("Secret cannot be pickled")
