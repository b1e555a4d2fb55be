"""Text for the terminal."""

from __future__ import annotations

import contextlib
import sys
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from itertools import zip_longest

WIDTH = 80
# Between two words that must stay on one line.
TIE = "\N{NO-BREAK SPACE}"


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Lay out rows under a head, each column as wide as its widest cell."""
    cells = [list(map(str, row)) for row in [head, *rows]]
    widths = [max(len(row[i]) for row in cells) for i in range(len(head))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in cells
    )


def folded(row: Sequence[str], widths: Sequence[int]) -> Iterator[tuple[str, ...]]:
    """Wrap the cells of a table's row to the given widths, over as many rows as needed."""
    cells = [_wrapped(cell, width) for cell, width in zip(row, widths, strict=True)]
    yield from zip_longest(*cells, fillvalue="")


def paragraph(text: str, *, indent: str = "", hang: str = "  ") -> list[str]:
    """Break a text into lines that fit a terminal; `hang` indents all but the first."""
    return _wrapped(text, WIDTH, indent, hang)


def _wrapped(text: str, width: int, indent: str = "", hang: str = "") -> list[str]:
    lines = textwrap.wrap(
        text,
        width,
        initial_indent=indent,
        subsequent_indent=hang,
        break_long_words=False,
        break_on_hyphens=False,
    )
    return [line.replace(TIE, " ") for line in lines]


def show(lines: Iterable[str]) -> None:
    """Print lines on stderr, even if it is closed: that is no reason not to serve."""
    with contextlib.suppress(OSError, ValueError):
        print("\n".join(lines), file=sys.stderr, flush=True)
