"""Who sent SIGHUP: somebody who wants the settings read anew, or a terminal that is gone."""

from __future__ import annotations

import os

STDIN = 0


class Terminal:
    """The terminal that the process was started from, if any."""

    def __init__(self) -> None:
        self._was_there = os.isatty(STDIN)

    @property
    def is_gone(self) -> bool:
        """Whether there was one, and it hung up."""
        return self._was_there and not os.isatty(STDIN)
