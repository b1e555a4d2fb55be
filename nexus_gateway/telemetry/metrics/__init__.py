"""Figures for Prometheus: counted as requests end, put together when somebody asks.

`families` says what there is, `counts` holds what was counted, `counting` is the observer that
counts, `state` reads how the instances are, and `exposition` writes all of it in the format that
Prometheus reads. Only the last needs the extra `metrics`, and only when it is used.
"""
