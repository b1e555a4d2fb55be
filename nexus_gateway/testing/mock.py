"""A provider that is not there: some instances on loopback that say back what they are asked.

    async with Mock(3) as mock:
        mock.set(2, {"cut": 3})
        ...  # put a gateway before it: mock.environment()
        assert mock.instances[1].requests > 0

Each instance listens on a port of its own, so that what goes wrong before the first byte can be its
own too. A request belongs to the instance whose key (`mock-key-2`) it carries, and to that of the
port where it carries none of them. Beside `/v1` every port has what controls the faults:
`GET`, `PUT` and `DELETE` of `/faults` and `/faults/2`, and `GET /stats`.

A script: which faults come when.

Each line is a wait, counted from the line before, and the faults that then hold:

    # wait          faults, as after --fault; `ok` takes them away
    10s             2:status=500
    200requests     2:ok 3:cut=2 3:drip=20
    5s              ok

What the mock says: the last message that it is sent, so that every answer can be checked.
"""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any, Self

from aiohttp import web

from nexus_gateway.proxy.resumption import CONTINUE
from nexus_gateway.server.sockets import QUEUE
from nexus_gateway.testing.faults import (
    AT_THE_DOOR,
    Faults,
    Value,
    WrongFault,
    assign,
    befalls,
    read_faults,
    spoilt,
)
from nexus_gateway.testing.received import Received
from nexus_gateway.testing.reply import Reply
from nexus_gateway.testing.upstream import answer, key_of
from nexus_gateway.testing.wire import wire_for
from nexus_gateway.wire import json_codec


def said_back(fields: Mapping[str, Any]) -> str | None:
    """Return what a request wants to hear again.

    Who is asked to go on with an answer that broke (`RESUME`) says only what of it is missing, as
    a model would that does as it is told.

    Args:
        fields: of the request's body.

    Returns:
        The text, which may be empty only where nothing is missing; None where there is none.
    """
    messages = fields.get("messages")
    texts = [_text(message) for message in messages] if isinstance(messages, list) else []
    if len(texts) > 2 and texts[-1] == CONTINUE and texts[-3].startswith(texts[-2]):
        return texts[-3].removeprefix(texts[-2])
    prompt = fields.get("prompt")
    return (texts[-1] if texts else "") or (prompt if isinstance(prompt, str) else "") or None


def _text(message: object) -> str:
    """Return the text of a message, "" where there is none."""
    content = message.get("content") if isinstance(message, dict) else None
    parts = content if isinstance(content, list) else [{"text": content}]
    texts = [part.get("text") for part in parts if isinstance(part, dict)]
    return "".join(text for text in texts if isinstance(text, str))


_WAIT = re.compile(r"(?P<number>[0-9]{1,9}(?:\.[0-9]{1,6})?)(?P<unit>s|requests)")


@dataclass(frozen=True, slots=True)
class Step:
    """One line.

    Args:
        after_s: how long to wait; 0 where requests are counted.
        after_requests: how many requests to wait for; 0 where time is.
        faults: by the instance's number, the whole set of each that changes.
    """

    after_s: float = 0.0
    after_requests: int = 0
    faults: dict[int, dict[str, Value]] = field(default_factory=dict)


def read_script(text: str, instances: int) -> list[Step]:
    """Read a script.

    Raises:
        WrongFault: a line of it cannot be used; the text names it.
    """
    return [*_steps(text, instances)]


def _steps(text: str, instances: int) -> Iterator[Step]:
    for number, line in enumerate(text.splitlines(), 1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        try:
            yield _step(words, instances)
        except WrongFault as error:
            raise WrongFault(f"line {number}: {error}") from None


def _step(words: list[str], instances: int) -> Step:
    wait = _WAIT.fullmatch(words[0])
    if wait is None or len(words) < 2:
        raise WrongFault("write a wait such as 10s or 200requests, then the faults, or ok.")
    faults = assign(words[1:], instances)
    if wait["unit"] == "s":
        return Step(after_s=float(wait["number"]), faults=faults)
    if "." in wait["number"]:
        raise WrongFault("requests are counted in whole numbers.")
    return Step(after_requests=int(wait["number"]), faults=faults)


KEY = "mock-key-"
MODEL = "mock-1"
LARGEST_BODY = 64 * 1024 * 1024
CLOSE_S = 0.1
# A fatal alert, "handshake failure": no TLS client goes on after it.
TLS_ALERT = b"\x15\x03\x03\x00\x02\x02\x28"
_NO_OBJECT = {"message": "The body must be a JSON object.", "param": None, "code": None}


@dataclass
class MockInstance:
    """One of the instances.

    Attributes:
        number: 1 for the first.
        rng: chance of its own, so that the n-th request always meets the same.
        port: where it listens.
        faults: what is wrong with it now.
        requests: how many came.
        connections: how many were made to its port.
        open: how many requests are being answered now.
        hit: how many requests (or connections) each fault befell.
    """

    number: int
    rng: Random
    port: int = 0
    faults: Faults = field(default_factory=dict)
    requests: int = 0
    connections: int = 0
    open: int = 0
    hit: Counter[str] = field(default_factory=Counter)

    def drawn(self) -> Faults:
        """Return the faults that befall the next request, and count them."""
        if not befalls(self.faults, self.rng):
            return {}
        self.hit.update(self.faults.keys() - {"chance"})
        return self.faults

    def stats(self) -> dict[str, Any]:
        """Return what came so far."""
        counts = {"requests": self.requests, "connections": self.connections, "open": self.open}
        return {"faults": dict(self.faults), **counts, "hit": dict(sorted(self.hit.items()))}


class _Refusing(asyncio.Protocol):
    """Has no ear for whoever connects.

    Args:
        name: of the fault.
    """

    def __init__(self, name: str) -> None:
        self._name = name

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Close at once, or wait for what the client says first."""
        self._transport = transport
        if self._name == "close":
            transport.close()

    def data_received(self, data: bytes) -> None:
        """Fail the handshake."""
        assert isinstance(self._transport, asyncio.Transport)
        self._transport.write(TLS_ALERT)
        self._transport.close()


class Mock:
    """The server.

    Args:
        instances: how many.
        host: where it listens.
        port: of the first instance, the others follow; 0 for any free ones.
        seed: of all chance.
    """

    def __init__(
        self, instances: int = 1, *, host: str = "127.0.0.1", port: int = 0, seed: int = 0
    ) -> None:
        self.instances = [MockInstance(n, Random(f"{seed}:{n}")) for n in range(1, instances + 1)]
        self.requests = 0
        self._host = host
        self._port = port
        self._came = asyncio.Event()
        self._servers: list[asyncio.Server] = []
        self._runner: web.AppRunner | None = None

    async def __aenter__(self) -> Self:
        app = web.Application(client_max_size=LARGEST_BODY)
        app.router.add_post("/v1/{path:.*}", self._answer)
        app.router.add_get("/v1/models", self._models)
        app.router.add_get("/stats", self._stats)
        for path in ("/faults", "/faults/{number:[0-9]{1,4}}"):
            app.router.add_get(path, self._control)
            app.router.add_put(path, self._control)
            app.router.add_delete(path, self._control)
        self._runner = web.AppRunner(
            app, handler_cancellation=True, shutdown_timeout=CLOSE_S, access_log=None
        )
        await self._runner.setup()
        try:
            for instance in self.instances:
                await self._listen(instance)
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def _listen(self, instance: MockInstance) -> None:
        port = self._port and self._port + instance.number - 1
        server = await asyncio.get_running_loop().create_server(
            lambda: self._protocol(instance), self._host, port, backlog=QUEUE
        )
        self._servers.append(server)
        instance.port = server.sockets[0].getsockname()[1]

    def _protocol(self, instance: MockInstance) -> asyncio.Protocol:
        assert self._runner is not None
        assert self._runner.server is not None
        instance.connections += 1
        at_the_door = [name for name in AT_THE_DOOR if name in instance.faults]
        if at_the_door and (drawn := instance.drawn()):
            return _Refusing(next(name for name in AT_THE_DOOR if name in drawn))
        return self._runner.server()

    async def __aexit__(self, *exc_info: object) -> None:
        for server in self._servers:
            server.close()
        assert self._runner is not None
        await self._runner.cleanup()

    def url(self, number: int) -> str:
        """Return an instance's base URL; https for one that fails each TLS handshake."""
        instance = self.instances[number - 1]
        host = f"[{self._host}]" if ":" in self._host else self._host
        scheme = "https" if "tls" in instance.faults else "http"
        return f"{scheme}://{host}:{instance.port}/v1"

    def environment(self) -> dict[str, str]:
        """Return the variables that put a gateway before it."""
        env: dict[str, str] = {}
        for n in range(1, len(self.instances) + 1):
            about = {"BASE_URL": self.url(n), "MODEL": MODEL, "KEY": f"{KEY}{n}"}
            env |= {f"LOCAL_{name}_{n}": value for name, value in about.items()}
        return env

    def set(self, number: int, faults: Faults) -> None:
        """Give an instance faults instead of those that it has."""
        self.instances[number - 1].faults = dict(faults)

    async def play(self, steps: Sequence[Step]) -> None:
        """Do what a script says, to its end."""
        for step in steps:
            await asyncio.sleep(step.after_s)
            wanted = self.requests + step.after_requests
            while self.requests < wanted:
                self._came.clear()
                await self._came.wait()
            for number, faults in step.faults.items():
                self.set(number, faults)

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        instance = self._meant(request)
        instance.requests += 1
        self.requests += 1
        self._came.set()
        instance.open += 1
        try:
            raw = await request.read()
            received = Received(key_of(request.headers), {}, raw, request.path)
            if not (request.content_type.startswith("multipart/") or _is_object(received)):
                return _json({"error": {**_NO_OBJECT, "type": "invalid_request_error"}}, 400)
            reply = spoilt(_reply_to(received), instance.drawn(), instance.rng)
            return await answer(request, reply, received, wire_for(request.path)())
        except ConnectionError:
            return web.Response()  # to nobody: who asked has gone
        finally:
            instance.open -= 1

    def _meant(self, request: web.Request) -> MockInstance:
        key = key_of(request.headers)
        port = request.transport.get_extra_info("sockname")[1] if request.transport else 0
        by_key = [i for i in self.instances if key == f"{KEY}{i.number}"]
        return (by_key or [i for i in self.instances if i.port == port] or self.instances)[0]

    async def _models(self, request: web.Request) -> web.Response:
        model = {"id": MODEL, "object": "model", "created": 0, "owned_by": "mock"}
        return _json({"object": "list", "data": [model]})

    async def _stats(self, request: web.Request) -> web.Response:
        return _json({str(i.number): i.stats() for i in self.instances})

    async def _control(self, request: web.Request) -> web.Response:
        number = request.match_info.get("number")
        meant = [i for i in self.instances if number is None or i.number == int(number)]
        if not meant:
            count = len(self.instances)
            return _json({"error": f"there is no instance {number}; there are {count}."}, 404)
        if request.method != "GET":
            try:
                faults = await _wanted(request)
            except WrongFault as error:
                return _json({"error": str(error)}, 400)
            for instance in meant:
                instance.faults = dict(faults)
        return _json({str(i.number): dict(i.faults) for i in self.instances})


async def _wanted(request: web.Request) -> dict[str, Value]:
    if request.method == "DELETE":
        return {}
    try:
        return read_faults(json_codec.loads(await request.read()))
    except WrongFault:
        raise
    except ValueError:
        raise WrongFault("the body is no JSON.") from None


def _json(value: object, status: int = 200) -> web.Response:
    body = json_codec.dumps(value) + b"\n"
    return web.Response(status=status, body=body, content_type="application/json")


def _is_object(received: Received) -> bool:
    try:
        return isinstance(received.body, dict)
    except ValueError:
        return False


def _reply_to(received: Received) -> Reply:
    """Return a good answer: what was asked for, or what the fake upstream says."""
    asked = received.body if _is_object(received) else {}
    text, model = said_back(asked), asked.get("model")
    return Reply(
        text=Reply().text if text is None else text,
        model=model if isinstance(model, str) else MODEL,
    )
