"""A scriptable OpenAI-compatible server on loopback.

async with FakeUpstream() as upstream:
    upstream.script(Reply(status=500), Reply(text="Back again"), key="key-1")
    ...  # send requests to upstream.base_url
    assert upstream.hits("key-1") == 2
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable

from aiohttp import web

from nexus_gateway.testing.reply import Reply
from nexus_gateway.testing.server import ReplyServer
from nexus_gateway.testing.wire import Received, Wire


class FakeUpstream(ReplyServer):
    """The server.

    A request without a scripted reply gets that of `choose`, else of `defaults`, else `default`.

    Args:
        wire: creates the encoder of an answer; None: that of the official service at the path.

    Attributes:
        base_url: where it listens, with `/v1`.
        requests: all requests received so far.
        open: the number of requests being answered now.
        default: the reply to any request.
        defaults: the reply to the requests of one key, by key.
        choose: returns the reply to a request, or None for the defaults.
    """

    def __init__(self, wire: Callable[[], Wire] | None = None) -> None:
        super().__init__(wire=wire)
        self.default = Reply()
        self.defaults: dict[str, Reply] = {}
        self.choose: Callable[[Received], Reply | None] | None = None
        self.requests: list[Received] = []
        self.base_url = ""
        self._scripts: dict[str | None, deque[Reply]] = defaultdict(deque)

    def script(self, *replies: Reply, key: str | None = None) -> None:
        """Queue replies, each for one request: of that key, or of any if None."""
        self._scripts[key].extend(replies)

    def hits(self, key: str | None = None) -> int:
        """Return the number of requests, with one key or in total."""
        return sum(key is None or received.key == key for received in self.requests)

    async def _listen(self) -> None:
        port = await self._listen_on(0, self._http)
        self.base_url = f"http://{self._host}:{port}/v1"

    def _reply_to(self, request: web.Request, received: Received) -> Reply:
        self.requests.append(received)
        for queue in (self._scripts[received.key], self._scripts[None]):
            if queue:
                return queue.popleft()
        chosen = None if self.choose is None else self.choose(received)
        return chosen or self.defaults.get(received.key, self.default)
