"""Text for the terminal."""

from __future__ import annotations

import contextlib
import sys
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from itertools import zip_longest

WIDTH = 80
# Between two words that must not be parted.
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
    """Lay a row of a table out over as many rows as its longest cell needs.

    Args:
        row: the cells.
        widths: how wide each may be.
    """
    cells = [_wrapped(cell, width) for cell, width in zip(row, widths, strict=True)]
    yield from zip_longest(*cells, fillvalue="")


def paragraph(text: str, *, indent: str = "", hang: str = "  ") -> list[str]:
    """Break a text into lines that fit a terminal.

    Args:
        text: what is said.
        indent: stands before the first line.
        hang: stands before each further one.
    """
    return _wrapped(text, WIDTH, indent, hang)


def _wrapped(text: str, width: int, indent: str = "", hang: str = "") -> list[str]:
    """Break a text between its words; one that is longer than a line stays whole."""
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
    """Print lines on stderr; nobody may be reading, which is no reason not to serve."""
    with contextlib.suppress(OSError, ValueError):
        print("\n".join(lines), file=sys.stderr, flush=True)
