"""One request from parsed to done.

- `relay`: attempts until one answers, then its bytes through
- `context`: the request on its way
- `record`: what became of it
- `hedging`: two attempts at a time
- `queue`: requests that wait for an instance
- `hook_runner`: hooks around a request
- `resumption`: another instance continues a broken stream
"""
