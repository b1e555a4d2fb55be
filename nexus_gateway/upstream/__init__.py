"""One attempt at one instance over HTTP: build, send, read, classify.

- `attempt`: the attempt, up to the first content of its answer
- `failures`: what a failure means for the instance and for the request
- `streams`: streamed answers, passed through or translated
- `client`: the HTTP client, which chooses between the two paths below
- `connector`, `dns`: the pool of connections of both, and how names are looked up
- `response`: the interface of a response, and aiohttp's session as one path
- `direct`: the other path, a borrowed connection without aiohttp's parser
- `http1`: the HTTP/1.1 of the direct path
"""
