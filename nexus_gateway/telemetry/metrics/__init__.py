"""Metrics for Prometheus: counted in batches as requests end, put together at a scrape.

definitions  name, labels and buckets of every metric
counts       counters and histograms as numbers that workers share
counting     the observer, and what each request adds
gauges       the state of the instances and of the process
exposition   the text format; the only module that needs the extra `metrics`
"""
