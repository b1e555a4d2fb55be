"""The process: listen, serve, drain, reload; one process or several.

- `process`: one process from start to exit
- `sockets`: the listening socket
- `reload`: new settings without a restart
- `supervisor`, `worker`: several processes
- `channel`, `sync`: what they exchange
"""
