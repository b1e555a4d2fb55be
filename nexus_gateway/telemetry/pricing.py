"""What a request cost, by the price list of the package genai-prices (the extra `prices`).

The package knows the prices; here is only how to ask it once, not for every request, as it takes
its time. Nothing is ever fetched: the list is the one that was installed with the package.
"""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.util import find_spec
from typing import Any, NamedTuple

from nexus_gateway.proxy.record import RequestRecord

logger = logging.getLogger("nexus_gateway")

# Some prices depend on the time of day.
PERIOD_S = 900
MOST_KNOWN = 1000
# Long prompts may have a price of their own; most are short.
SHORT = 100_000
# What was read, how much of it from a cache, how much of it into one, and what was written.
_SAMPLES = ((SHORT, 0, 0, 0), (SHORT, SHORT, 0, 0), (SHORT, 0, SHORT, 0), (0, 0, 0, SHORT))
_CHECKS = ((300, 100, 50, 20), (SHORT, SHORT // 3, SHORT // 4, SHORT // 2))

_Cost = Callable[[int, int, int, int], float | None]


class Spent(NamedTuple):
    """What requests have cost.

    Args:
        usd: as far as it is known; None where nothing of it is.
        priced: the share of the requests whose cost is known, from 0 to 1; None without any.
    """

    usd: float | None
    priced: float | None


def spent_on(usd: float, priced: float, unpriced: float, *, may_know: bool) -> Spent:
    """Tell what was spent.

    Args:
        usd: what the priced ones cost.
        priced: of how many requests the cost is known.
        unpriced: of how many it is not.
        may_know: whether there is a price list, so that nothing spent is known to be nothing.
    """
    asked = priced + unpriced
    known = priced or (may_know and not asked)
    return Spent(usd if known else None, priced / asked if asked else None)


def has_cost(record: RequestRecord) -> bool:
    """Tell whether a request must have cost something: who got nothing is asked for nothing."""
    return record.outcome == "success" or bool(record.tokens.completion)


class Prices:
    """Tells costs. Asked for the first time it loads the price list: half a second, 30 MB.

    Attributes:
        is_installed: whether there is a list.
    """

    def __init__(self) -> None:
        self.is_installed = find_spec("genai_prices") is not None
        self._known: dict[tuple[str, str, int], _Cost | None] = {}
        self._snapshot: Any = None

    @property
    def is_loaded(self) -> bool:
        """Whether the list is there, so that costs are told without delay."""
        return self._snapshot is not None

    def cost_usd(self, record: RequestRecord) -> float | None:
        """Return what a request cost, in US dollars; None when that is not known.

        Nor is that of an answer that somebody else went on with, whose price may be another.
        """
        if record.resumed:
            return None
        if record.provider == "openrouter" and record.billed_usd is not None:
            return record.billed_usd
        tokens, prompt = record.tokens, record.tokens.prompt
        if prompt is None or not tokens.is_text or not record.model:
            return None
        if record.endpoint == "transcriptions":  # not priced by text
            return None
        key = (record.provider, record.model, int(record.ended_s // PERIOD_S))
        if key not in self._known:
            if len(self._known) >= MOST_KNOWN:
                self._known.clear()
            self._known[key] = self._find(record)
        cost = self._known[key]
        if cost is None:
            return None
        cached = min(tokens.cached or 0, prompt)
        written = min(tokens.cache_written or 0, prompt - cached)
        return cost(prompt, cached, written, tokens.completion or 0)

    def _find(self, record: RequestRecord) -> _Cost | None:
        """Return what tells the costs of a model; None when nobody knows its price."""
        if self._snapshot is None:
            self._snapshot = _price_list()
        if not self._snapshot:
            return None
        try:
            found = _model(self._snapshot, record.provider, record.model)
            return found and _quick(_asking(*found, datetime.fromtimestamp(record.ended_s, UTC)))
        except Exception:  # somebody else's list must not cost a row
            logger.exception("no price for %s", record.model)
            return None


def _price_list() -> Any:
    """Return the installed price list; False where there is none."""
    try:
        from genai_prices.data_snapshot import get_snapshot
    except ImportError:
        return False
    found = get_snapshot()
    # It is large and stays: the collector need not walk it for each few hundred requests.
    gc.freeze()
    return found


def _model(snapshot: Any, provider: str, model: str) -> tuple[Any, Any] | None:
    """Find a model of a provider, by its name or by the part of it that follows the maker's."""
    try:
        owner = snapshot.find_provider(None, provider, None)
    except LookupError:
        return None
    found = owner.find_model(model.lower(), all_providers=snapshot.providers)
    if found is None:
        found = next((m for m in owner.models if m.id.endswith("/" + model.lower())), None)
    return None if found is None else (owner, found)


def _asking(owner: Any, model: Any, at: datetime) -> _Cost:
    """Return what asks the package every time."""
    from genai_prices import Usage

    def cost(prompt: int, cached: int, written: int, completion: int) -> float | None:
        used = Usage(
            input_tokens=prompt,
            cache_read_tokens=cached,
            cache_write_tokens=written,
            output_tokens=completion,
        )
        try:
            priced = model.calc_price(used, owner, genai_request_timestamp=at)
        except ValueError:  # not priced by such tokens
            return None
        return float(priced.total_price)

    return cost


def _quick(ask: _Cost) -> _Cost:
    """Return what multiplies, as far as the price is in proportion, and asks beyond that."""
    told = [ask(*sample) for sample in _SAMPLES]
    if None in told:
        return ask
    fresh, kept, keeping, answered = (each / SHORT for each in told if each is not None)

    def multiply(prompt: int, cached: int, written: int, completion: int) -> float | None:
        if prompt > SHORT:
            return ask(prompt, cached, written, completion)
        plain = prompt - cached - written
        return plain * fresh + cached * kept + written * keeping + completion * answered

    for check in _CHECKS:
        asked, made = ask(*check), multiply(*check)
        if asked is None or made is None or abs(made - asked) > 1e-9:
            return ask
    return multiply
