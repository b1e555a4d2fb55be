"""The fast path: the usual request from socket to socket, without aiohttp's requests and tasks.

- `head` reads heads that are strictly plain. `connection` looks at the bytes of a caller before
  aiohttp does, and gives it all that is unusual, unchanged.
- `request` sends the first attempt of a usual request on an idle connection to the upstream, and
  writes what comes to the caller's transport in the turn of the loop in which it comes.
- `wheel` has one timer for the limits of all requests.

It decides nothing: resolver, scheduler, attempt, framing, checks and record are those of the main
path. Until the first byte was sent to the caller, whatever is unusual goes there: the main path
gets the caller's bytes and the attempt as it runs, with the response so far, and goes on from
there as if it had sent the request itself.
"""
