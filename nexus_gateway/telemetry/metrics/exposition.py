"""What was counted and how the instances are, as Prometheus reads it. Needs the extra `metrics`."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from itertools import accumulate

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector, CollectorRegistry
from prometheus_client.utils import floatToGoString

from nexus_gateway.telemetry.metrics.counting import Counts, Key
from nexus_gateway.telemetry.metrics.definitions import COUNTER, FAMILIES, GAUGE, Family

_OPENMETRICS = "application/openmetrics-text"


def render(counts: Counts, gauges: Mapping[Key, float], accept: str) -> tuple[bytes, str]:
    """Write figures in OpenMetrics where the caller takes that, else in Prometheus's own format.

    Args:
        counts: what was counted.
        gauges: what goes up and down.
        accept: the caller's Accept header.

    Returns:
        The text, and its content type.
    """
    # Only the two forms that are tested, whatever version the caller would like.
    encode, content_type = choose_encoder(
        f"{_OPENMETRICS};version=1.0.0" * (_OPENMETRICS in accept)
    )
    registry = CollectorRegistry()
    registry.register(_Collector(counts, gauges))
    return encode(registry), content_type


class _Collector(Collector):
    def __init__(self, counts: Counts, gauges: Mapping[Key, float]) -> None:
        self._gauges = gauges
        self._counts = counts

    def describe(self) -> Iterable[Metric]:
        return []

    def collect(self) -> Iterator[Metric]:
        """Give the families that have anything to say; what has no labels is 0 from the start."""
        for family in FAMILIES:
            if not family.labels and family.sort == COUNTER:
                self._counts.of((family.name,))
        keys: defaultdict[str, list[Key]] = defaultdict(list)
        for key in (*self._gauges, *self._counts.numbers):
            keys[key[0]].append(key)
        for family in FAMILIES:
            if family.name in keys:
                yield self._metric(family, sorted(keys[family.name]))

    def _metric(self, family: Family, keys: Iterable[Key]) -> Metric:
        if family.sort == GAUGE:
            gauge = GaugeMetricFamily(family.name, family.help, labels=family.labels)
            for key in keys:
                gauge.add_metric(key[1:], self._gauges[key])
            return gauge
        numbers = self._counts.numbers
        if family.sort == COUNTER:
            counter = CounterMetricFamily(family.name, family.help, labels=family.labels)
            for key in keys:
                counter.add_metric(key[1:], numbers[key][0])
            return counter
        histogram = HistogramMetricFamily(family.name, family.help, labels=family.labels)
        bounds = [*map(floatToGoString, family.buckets), "+Inf"]
        for key in keys:
            *fallen, total = numbers[key]
            buckets = list(zip(bounds, accumulate(fallen), strict=True))
            histogram.add_metric(key[1:], buckets, total)
        return histogram
