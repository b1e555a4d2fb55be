"""A parser for the metrics and labels of a PromQL expression."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

_WORDS = {"and", "or", "unless", "bool", "offset", "by", "without", "on", "ignoring"}
_WORDS |= {"group_left", "group_right", "inf", "nan"}
_GROUPING = re.compile(r"\b(?:by|without|on|ignoring|group_left|group_right)\s*\(([^)]*)\)")
_SELECTOR = re.compile(r"([a-zA-Z_:][\w:]*)\s*\{([^}]*)\}")
_MATCHER = re.compile(r"(\w+)\s*(?:=~|!~|!=|=)\s*\"([^\"]*)\"")
_NAME = re.compile(r"(?<![\w.$:])[a-zA-Z_:][\w:]*(?!\s*\()(?![\w:])")


@dataclass(slots=True)
class References:
    """The metrics and labels of an expression."""

    names: set[str] = field(default_factory=set)
    matchers: list[tuple[str, str, str]] = field(default_factory=list)
    grouped: set[str] = field(default_factory=set)


def read(expression: str) -> References:
    references = References()
    for labels in _GROUPING.findall(expression):
        references.grouped |= set(re.findall(r"\w+", labels))
    rest = _GROUPING.sub(" ", expression)
    for name, inside in _SELECTOR.findall(rest):
        references.names.add(name)
        references.matchers += [(name, *matcher) for matcher in _MATCHER.findall(inside)]
    rest = re.sub(r"\[[^\]]*\]", " ", _SELECTOR.sub(" ", rest))
    references.names |= {name for name in _NAME.findall(rest) if name not in _WORDS}
    return references
