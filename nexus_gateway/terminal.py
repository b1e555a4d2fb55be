"""Who sent SIGHUP: somebody who wants the settings read anew, or a terminal that is gone."""

from __future__ import annotations

import os
import signal

STDIN = 0


def hold_hangups() -> None:
    """Let SIGHUP wait: until it is heeded it would end the process, and none must be lost."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})


def heed_hangups() -> None:
    """Let it come, as there is a handler now."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGHUP})


class Terminal:
    """The terminal that the process was started from, if any."""

    def __init__(self) -> None:
        self._was_there = os.isatty(STDIN)

    @property
    def is_gone(self) -> bool:
        """Whether there was one, and it hung up."""
        return self._was_there and not os.isatty(STDIN)
