"""Formats on bytes and JSON, without I/O.

- `sse`: server-sent events, framed on bytes
- `chunks`: OpenAI's chat chunks, read and built
- `adaptations`: what backends need changed in a chat, as data
- `carried`: what callers carry from one turn to the next
- `usage`: the token counts of an answer
- `rate_limits`: Retry-After and the rate-limit headers of providers
- `error_objects`: error objects, read and written
- `json_codec`: JSON by orjson if it is installed
- `passthrough`: streams whose events are forwarded unchanged
"""
