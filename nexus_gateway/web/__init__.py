"""The aiohttp application.

- `app`: the routes, and the application built of them
- `gateway`: the parts of the running gateway that handlers share
- `middleware`, `auth`: errors as JSON, and who may call what
- `endpoint`: POST of a request in one dialect
- `request`: what is read of a request
- `responder`: what is written as its answer
- `connections`: the limits of client connections
- `handlers`: one module a resource
- `static`: the Control Center's files
"""
