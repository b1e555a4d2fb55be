"""Writes counts and gauges in the formats that Prometheus reads. Needs the extra `metrics`."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from itertools import accumulate

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector, CollectorRegistry
from prometheus_client.utils import floatToGoString

from nexus_gateway.telemetry.metrics.counts import Counts, Key
from nexus_gateway.telemetry.metrics.definitions import COUNTER, FAMILIES, HISTOGRAM, Family

_OPENMETRICS = "application/openmetrics-text"
_Series = list[tuple[Key, list[float]]]  # label values and numbers


def render(counts: Counts, gauges: Mapping[Key, float], accept: str) -> tuple[bytes, str]:
    """Return the text and its content type: OpenMetrics if `accept` allows it.

    A counter without labels is 0 from the start; other families are left out while they are empty.
    """
    for family in FAMILIES:
        if family.kind == COUNTER and not family.labels:
            counts.of(family)
    # Only the two versions that are tested, whatever version the caller prefers.
    encode, content_type = choose_encoder(
        f"{_OPENMETRICS};version=1.0.0" if _OPENMETRICS in accept else ""
    )
    registry = CollectorRegistry()
    registry.register(_Collector({**counts.numbers, **{k: [v] for k, v in gauges.items()}}))
    return encode(registry), content_type


class _Collector(Collector):
    def __init__(self, numbers: Mapping[Key, list[float]]) -> None:
        self._series: defaultdict[str, _Series] = defaultdict(list)
        for (name, *labels), values in sorted(numbers.items()):
            self._series[name].append((tuple(labels), values))

    def collect(self) -> Iterator[Metric]:
        for family in FAMILIES:
            if family.name in self._series:
                yield _metric(family, self._series[family.name])


def _metric(family: Family, series: _Series) -> Metric:
    if family.kind == HISTOGRAM:
        histogram = HistogramMetricFamily(family.name, family.help, labels=family.labels)
        bounds = [*map(floatToGoString, family.buckets), "+Inf"]
        for labels, (*buckets, total) in series:
            cumulative = list(zip(bounds, accumulate(buckets), strict=True))
            histogram.add_metric(labels, cumulative, total)
        return histogram
    create = CounterMetricFamily if family.kind == COUNTER else GaugeMetricFamily
    metric = create(family.name, family.help, labels=family.labels)
    for labels, (value,) in series:
        metric.add_metric(labels, value)
    return metric
