"""The shape that a stream's events share, learnt from one of them.

A model's events are the same bytes over and over, but for one string: what it says. Once an event
has been parsed and found good, any other that differs from it only inside that string is good as
well, and needs no look of its own: it has the same names, the same choices, no error, no finish.
So a whole block of such events is proved by cutting it at what stands between two texts, and
renamed by gluing it together again with the other model's name.
"""

from __future__ import annotations

import re

_SAID = re.compile(
    rb'"(?:content|reasoning_content|reasoning|arguments|text)"\s*:\s*"((?:[^"\\]|\\.)+)"'
)
# Texts, one a line, in which nothing ends the string that they stand in.
_TEXTS = re.compile(rb'(?:[^"\\\n]++|\\(?:["\\/bfnrt]|u[0-9A-Fa-f]{4})|\n)*+')
_END = b"\n\n"


class Template:
    """What is around the text in each event.

    Args:
        before: from the event's beginning to the text.
        after: from the text to the event's end, with the empty line.
        new_before: what goes out for `before`.
        new_after: what goes out for `after`.
    """

    __slots__ = ("_after", "_before", "_glue", "_new_after", "_new_before", "_new_glue")

    def __init__(self, before: bytes, after: bytes, new_before: bytes, new_after: bytes) -> None:
        self._before, self._after, self._glue = before, after, after + before
        self._new_before, self._new_after = new_before, new_after
        self._new_glue = new_after + new_before

    def apply_to_one(self, event: bytes) -> bytes | None:
        """Rename one event, where its text is plain; None where it takes a closer look."""
        shortest = len(self._before) + len(self._after)
        if (
            len(event) >= shortest
            and event.startswith(self._before)
            and event.endswith(self._after)
        ):
            text = event[len(self._before) : -len(self._after)]
            if not (b'"' in text or b"\\" in text or b"\n" in text or b"\r" in text):
                return self._new_before + text + self._new_after
        return None

    def apply(self, block: bytes) -> tuple[bytes, int, bytes] | None:
        """Rename the events of this shape with which a block of whole events begins.

        Returns:
            What goes out for them, how many there are, and the rest of the block; None where
            none is proved.
        """
        before, after = self._before, self._after
        if not block.startswith(before):
            return None
        start = len(before)
        if block.endswith(after):
            end, rest = len(block) - len(after), b""
        else:
            end = block.rfind(after)
            rest = block[end + len(after) :]
        if end < start:
            return None
        texts = self._texts(block[start:end])
        if texts is None:
            return None
        said = texts[0] if len(texts) == 1 else b"\n".join(texts)
        if said.count(b"\n") != len(texts) - 1:
            return None
        if (b'"' in said or b"\\" in said) and not _TEXTS.fullmatch(said):
            return None
        out = b"".join((self._new_before, self._new_glue.join(texts), self._new_after))
        return out, len(texts), rest

    def _texts(self, block: bytes) -> list[bytes] | None:
        """Cut a block, from its first text to its last, into its texts; None if others are in it.

        As `block.split(self._glue)`, which is slow where the glue is long: cut at the empty lines,
        take what is around the texts off by its length, and see whether it was that.
        """
        if _END not in block:
            return [block]
        first, *rest, last = block.split(_END)
        start, end = len(self._before), 2 - len(self._after)
        texts = [first[:end], *[event[start:end] for event in rest], last[start:]]
        return texts if self._glue.join(texts) == block else None


def learn(data: bytes, span: tuple[int, int] | None, model: bytes | None) -> Template | None:
    """Learn from one event.

    Args:
        data: its data, a JSON object in one line that says something and ends nothing.
        span: where the value of `model` stands in it; None where there is none.
        model: what `model` shall say, as JSON; None to leave it.

    Returns:
        The template; None where the event has no text that could be told from the rest.
    """
    said = _SAID.search(data)
    if said is None:
        return None
    start, end = said.span(1)
    before, after = b"data: " + data[:start], data[end:] + _END
    new_before, new_after = before, after
    if model is not None:
        if span is None:
            new_before = before.replace(b"{", b'{"model":' + model + b",", 1)
        elif span[1] <= start:
            new_before = b"data: " + data[: span[0]] + model + data[span[1] : start]
        elif span[0] >= end:
            new_after = data[end : span[0]] + model + data[span[1] :] + _END
        else:
            return None
    return Template(before, after, new_before, new_after)
