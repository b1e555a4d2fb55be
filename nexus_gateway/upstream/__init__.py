"""One attempt at one instance over HTTP: build the request, send it, read the answer, classify.

- `attempt`: the attempt, up to the first content of its answer
- `failures`: what a failed answer means for the instance and for the request
- `streams`: answers on their way, passed through or translated
- `client`: the HTTP client
- `response`: an answer's head and body, by aiohttp
- `direct`: the same on a borrowed connection, without aiohttp's parser
- `http1`: the HTTP/1.1 that the direct path reads
"""
