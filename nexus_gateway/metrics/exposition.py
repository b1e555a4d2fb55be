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

from nexus_gateway.metrics.counts import Counts, Key
from nexus_gateway.metrics.families import BY_NAME, COUNTER, FAMILIES, GAUGE, Family

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
        self._numbers = {**gauges, **counts.counters}
        self._histograms = counts.histograms

    def describe(self) -> Iterable[Metric]:
        return []

    def collect(self) -> Iterator[Metric]:
        """Give the families that have anything to say; what has no labels is 0 from the start."""
        keys: defaultdict[str, list[Key]] = defaultdict(list)
        for key in (*self._numbers, *self._histograms):
            keys[key[0]].append(key)
        for family in FAMILIES:
            if not family.labels and family.sort == COUNTER and family.name not in keys:
                self._numbers[(family.name,)] = 0
                keys[family.name].append((family.name,))
            if family.name in keys:
                yield self._metric(family, sorted(keys[family.name]))

    def _metric(self, family: Family, keys: Iterable[Key]) -> Metric:
        if family.sort == COUNTER:
            metric = CounterMetricFamily(family.name, family.help, labels=family.labels)
            for key in keys:
                metric.add_metric(key[1:], self._numbers[key])
            return metric
        if family.sort == GAUGE:
            gauge = GaugeMetricFamily(family.name, family.help, labels=family.labels)
            for key in keys:
                gauge.add_metric(key[1:], self._numbers[key])
            return gauge
        histogram = HistogramMetricFamily(family.name, family.help, labels=family.labels)
        for key in keys:
            numbers = self._histograms[key]
            histogram.add_metric(key[1:], _buckets(family, numbers), numbers[-1])
        return histogram


def _buckets(family: Family, numbers: list[float]) -> list[tuple[str, float]]:
    bounds = [*map(floatToGoString, BY_NAME[family.name].buckets), "+Inf"]
    return list(zip(bounds, accumulate(numbers[:-1]), strict=True))
