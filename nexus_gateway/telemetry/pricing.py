"""What a request cost, by the price list of the package genai-prices (the extra `prices`).

Nothing is ever fetched: the list is the one that was installed with the package.
"""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from importlib.util import find_spec
from typing import Any, NamedTuple

from nexus_gateway.proxy.record import RequestRecord

logger = logging.getLogger("nexus_gateway")

# Some prices depend on the time of day.
PERIOD_S = 900
MOST_KNOWN = 1000
# Long prompts may have a price of their own; most are short.
SHORT = 100_000
_SAMPLES = ((SHORT, 0, 0, 0), (SHORT, SHORT, 0, 0), (SHORT, 0, SHORT, 0), (0, 0, 0, SHORT))
_CHECKS = ((300, 100, 50, 20), (SHORT, SHORT // 3, SHORT // 4, SHORT // 2))

# From a prompt's tokens, those read from a cache, those written to one, and the completion's.
_Calculator = Callable[[int, int, int, int], float | None]


class Spent(NamedTuple):
    usd: float | None  # the known costs; None if none is known
    priced: float | None  # the share of requests with a known cost, from 0 to 1; None without any


def spent_on(usd: float, priced: float, unpriced: float, *, may_know: bool) -> Spent:
    """Sum up: what the priced requests cost, how many those are, and how many others there are.

    Before the first request, 0 is a known sum only if there is a price list (`may_know`).
    """
    requests = priced + unpriced
    known = priced or (may_know and not requests)
    return Spent(usd if known else None, priced / requests if requests else None)


def has_cost(record: RequestRecord) -> bool:
    """Whether an upstream charges for the request: not if it delivered nothing."""
    return record.outcome == "success" or bool(record.tokens.completion)


class Prices:
    """Prices requests. The first one loads the price list: half a second, 30 MB."""

    def __init__(self) -> None:
        self.is_installed = find_spec("genai_prices") is not None
        self._calculators: dict[tuple[str, str, int], _Calculator | None] = {}
        self._snapshot: Any = None

    @property
    def is_loaded(self) -> bool:
        return self._snapshot is not None

    def cost_usd(self, record: RequestRecord) -> float | None:
        """Return what a request cost; None if that is not known.

        The cost of a resumed answer is not: its parts may have different prices.
        """
        if record.resumed:
            return None
        if record.provider == "openrouter" and record.billed_usd is not None:
            return record.billed_usd
        return self._priced(record, record.tokens.cached or 0)

    def saved_usd(self, record: RequestRecord) -> float | None:
        """Return how much dearer a request had been without the upstream's cache."""
        cached = record.tokens.cached
        if not cached or record.resumed:
            return None
        cost_usd, fresh_usd = self._priced(record, cached), self._priced(record, 0)
        return None if cost_usd is None or fresh_usd is None else fresh_usd - cost_usd

    def _priced(self, record: RequestRecord, cached: int) -> float | None:
        """Return the price of a request if so many tokens were read from a cache."""
        tokens, prompt = record.tokens, record.tokens.prompt
        if prompt is None or not tokens.is_text or not record.model:
            return None
        if record.endpoint == "transcriptions":  # not priced by text
            return None
        key = (record.provider, record.model, int(record.ended_s // PERIOD_S))
        try:
            if key not in self._calculators:
                if len(self._calculators) >= MOST_KNOWN:
                    self._calculators.clear()
                self._calculators[key] = self._find(record)
            if calculate := self._calculators[key]:
                cached = min(cached, prompt)
                written = min(tokens.cache_written or 0, prompt - cached)
                return calculate(prompt, cached, written, tokens.completion or 0)
        except Exception:  # a fault of the price list must not cost a row
            logger.exception("no price for %s", record.model)
            self._calculators[key] = None
        return None

    def _find(self, record: RequestRecord) -> _Calculator | None:
        if self._snapshot is None:
            self._snapshot = _price_list()
        match = self._snapshot and _model(self._snapshot, record.provider, record.model)
        if not match:
            return None
        return _proportional(partial(_ask, *match, datetime.fromtimestamp(record.ended_s, UTC)))


def _price_list() -> Any:
    """Return the installed price list; False if there is none."""
    try:
        from genai_prices.data_snapshot import get_snapshot
    except ImportError:
        return False
    snapshot = get_snapshot()
    # It is large and stays: the collector need not walk it for each few hundred requests.
    gc.freeze()
    return snapshot


def _model(snapshot: Any, provider_name: str, model: str) -> tuple[Any, Any] | None:
    """Find a provider's model, by its name or by the part of it that follows the maker's."""
    try:
        provider = snapshot.find_provider(None, provider_name, None)
    except LookupError:
        return None
    same = (m for m in provider.models if m.id.endswith("/" + model.lower()))
    match = provider.find_model(model.lower(), all_providers=snapshot.providers) or next(same, None)
    return None if match is None else (provider, match)


def _ask(
    provider: Any, model: Any, at: datetime, prompt: int, cached: int, written: int, completion: int
) -> float | None:
    from genai_prices import Usage

    usage = Usage(
        input_tokens=prompt,
        cache_read_tokens=cached,
        cache_write_tokens=written,
        output_tokens=completion,
    )
    try:
        return float(model.calc_price(usage, provider, genai_request_timestamp=at).total_price)
    except ValueError:  # not priced by such tokens
        return None


def _proportional(ask: _Calculator) -> _Calculator:
    """Multiply, if a short request's price is in proportion: the package takes 30 times as long."""
    samples = [ask(*sample) for sample in _SAMPLES]
    if None in samples:
        return ask
    fresh, kept, keeping, answered = (cost / SHORT for cost in samples if cost is not None)

    def multiply(prompt: int, cached: int, written: int, completion: int) -> float | None:
        if prompt > SHORT:
            return ask(prompt, cached, written, completion)
        plain = prompt - cached - written
        return plain * fresh + cached * kept + written * keeping + completion * answered

    for check in _CHECKS:
        asked, product = ask(*check), multiply(*check)
        if asked is None or product is None or abs(product - asked) > 1e-9:
            return ask
    return multiply
