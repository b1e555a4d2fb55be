"""What became of requests. Observers only: nothing here decides.

- `log`, `stderr`: the log's lines, and how they leave the process
- `timeline`: the last minutes in buckets
- `feed`, `snapshot`: what the Control Center shows
- `shared`: figures that worker processes share
- `metrics`: Prometheus
- `semconv`, `tracing`, `export`: OpenTelemetry
- `pricing`: what an answer costs
- `ledger`, `ledger_writer`, `usage`: one row a request, and what is read from them
"""
