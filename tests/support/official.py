"""The official clients, each imported by the first test that uses it.

Importing both takes about 4 s in each process that collects tests; most processes need neither.
"""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import Any

from running import unmeasured


class LazyModule(ModuleType):
    """A module that is imported by the first access to an attribute."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):  # pytest looks up such names on every object of a test module
            raise AttributeError(name)
        with unmeasured():
            return getattr(importlib.import_module(self.__name__), name)


anthropic: Any = LazyModule("anthropic")
openai: Any = LazyModule("openai")
