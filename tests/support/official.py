"""The official clients, each imported by the first test that uses it.

To import both takes some 4 s of computing, in each of the processes that collect the tests; most of
these run none that needs them.
"""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import Any

from running import unmeasured


class Later(ModuleType):
    """Stands for a module that is imported by the first look at what is in it."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):  # pytest looks for such names in all that a test module has
            raise AttributeError(name)
        with unmeasured():
            return getattr(importlib.import_module(self.__name__), name)


anthropic: Any = Later("anthropic")
openai: Any = Later("openai")
