"""Standard error that never blocks: a thread of its own writes what the process has to say.

Whoever reads the log may stop reading and yet live: Ctrl-S in a terminal, `| less`, a log driver
that hangs. A write then waits for ever, and with it would the event loop. So whatever is written
here, by logging or by Python itself, waits in a bounded queue. If that is full, lines are dropped
and counted until the reader has taken the rest; then one line of the log says how many are missing.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import select
import sys
import threading
from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

logger = logging.getLogger("nexus_gateway")

MOST_BYTES = 4 * 1024 * 1024
# A write of this size to a pipe is whole: lines of several workers do not mix.
WHOLE = select.PIPE_BUF if hasattr(select, "PIPE_BUF") else 512
FLUSH_S = 1.0


@contextlib.contextmanager
def unblocked() -> Iterator[None]:
    """Replace `sys.stderr` by one that never blocks, unless it is a stream in memory.

    Afterwards the former one is back, unless it has no reader any more that reads.
    """
    former = sys.stderr
    try:
        raw = _QueuedStderr(former.fileno())
    except io.UnsupportedOperation:
        yield
        return
    sys.stderr = io.TextIOWrapper(
        raw, former.encoding, errors="backslashreplace", write_through=True
    )
    try:
        yield
    finally:
        if flush():
            sys.stderr = former


def flush() -> bool:
    """Wait until all lines were written, for a second at most; return whether they were."""
    queue = _queue()
    return queue is None or queue.wait(FLUSH_S)


def dropped_lines() -> int:
    """Return how many lines were dropped since the start."""
    queue = _queue()
    return 0 if queue is None else queue.dropped


def _queue() -> _QueuedStderr | None:
    raw = getattr(sys.stderr, "buffer", None)
    return raw if isinstance(raw, _QueuedStderr) else None


class _QueuedStderr(io.RawIOBase):
    def __init__(self, number: int) -> None:
        self.dropped = 0
        self._number = number
        self._is_full = False  # from the first line that found no room until the queue is empty
        self._unreported = 0
        self._held = 0  # bytes in the queue, and those that are being written
        self._queue: deque[bytes] = deque()
        # Reentrant, as a finalizer may warn while this thread holds it.
        self._changed = threading.Condition(threading.RLock())
        # A daemon: the interpreter does not wait for it when it exits.
        threading.Thread(target=self._run, name="stderr", daemon=True).start()

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._number

    def isatty(self) -> bool:
        return os.isatty(self._number)

    def write(self, data: ReadableBuffer, /) -> int:
        piece = bytes(data)
        with self._changed:
            if self._is_full or self._held + len(piece) > MOST_BYTES:
                self._is_full = True
                self._unreported += piece.count(b"\n")
                self.dropped += piece.count(b"\n")
            else:
                self._held += len(piece)
                self._queue.append(piece)
            self._changed.notify_all()
        return len(piece)

    def wait(self, limit_s: float) -> bool:
        """Wait until the queue is empty; False if the time is over before."""
        with self._changed:
            return self._changed.wait_for(lambda: not (self._held or self._is_full), limit_s)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._queue or self._is_full)
                data = b""
                while self._queue and (not data or len(data) + len(self._queue[0]) <= WHOLE):
                    data += self._queue.popleft()
            self._write(data)
            with self._changed:
                is_over = self._is_full and not self._queue
                if is_over:
                    missing, self._unreported, self._is_full = self._unreported, 0, False
            if is_over:
                logger.warning(
                    "lines of the log were dropped, as nothing read it",
                    extra={"fields": {"lines": missing}},
                )
            with self._changed:
                self._held -= len(data)
                self._changed.notify_all()

    def _write(self, data: bytes) -> None:
        rest = memoryview(data)
        try:
            while rest:
                rest = rest[os.write(self._number, rest) :]
        except OSError:  # its reader is gone, or the disk is full: no report could be written
            with self._changed:
                self.dropped += data.count(b"\n")
