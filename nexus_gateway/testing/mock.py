"""A fake provider with several instances on loopback, which answer with the last message.

    async with Mock(3) as mock:
        mock.set(2, {"cut": 3})
        ...  # start a gateway with mock.environment()
        assert mock.instances[1].requests > 0

Each instance has its own port, so that its connections can fail as well. A request is assigned to
the instance whose key (`mock-key-2`) it carries, otherwise to the one whose port it used. Beside
`/v1` each port has `GET`, `PUT` and `DELETE` of `/faults` and `/faults/2`, and `GET /stats`.

A script changes the faults over time. Each line has a wait, in seconds or in requests, counted from
the previous line, and the faults that apply from then on: `200requests 2:ok 3:cut=2 3:drip=20`.
"""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from random import Random
from typing import Any

from aiohttp import web

from nexus_gateway.errors import error_object
from nexus_gateway.proxy.resumption import CONTINUE
from nexus_gateway.testing.faults import (
    CHANCE,
    CONNECTION_FAULTS,
    Faults,
    Value,
    WrongFault,
    apply,
    assign,
    poisoned,
    read_faults,
)
from nexus_gateway.testing.reply import Reply
from nexus_gateway.testing.server import ReplyServer, key_of
from nexus_gateway.testing.wire import Received
from nexus_gateway.wire import json_codec

KEY = "mock-key-"
SILENT = ".silent.invalid"  # names in it are not answered in a campaign, and unknown elsewhere
MODEL = "mock-1"
# A fatal alert, "handshake failure": every TLS client gives up.
TLS_ALERT = b"\x15\x03\x03\x00\x02\x02\x28"
NOT_AN_OBJECT = error_object("The body must be a JSON object.", kind="invalid_request_error")
_WAIT = re.compile(r"(?P<number>[0-9]{1,9}(?:\.[0-9]{1,6})?)(?P<unit>s|requests)")


def echo(fields: Mapping[str, Any]) -> str | None:
    """Return the text that answers a request: its last message or its prompt.

    If the request continues a broken answer (`RESUME`), the text is the missing part, which may be
    empty. None if the request has no text.
    """
    messages = fields.get("messages")
    texts = [_text(message) for message in messages] if isinstance(messages, list) else []
    if len(texts) > 2 and texts[-1] == CONTINUE and texts[-3].startswith(texts[-2]):
        return texts[-3].removeprefix(texts[-2])
    prompt = fields.get("prompt")
    return (texts[-1] if texts else "") or (prompt if isinstance(prompt, str) else "") or None


def _text(message: object) -> str:
    content = message.get("content") if isinstance(message, dict) else None
    parts = content if isinstance(content, list) else [{"text": content}]
    texts = [part.get("text") for part in parts if isinstance(part, dict)]
    return "".join(text for text in texts if isinstance(text, str))


@dataclass(frozen=True, slots=True)
class Step:
    """One line of a script: a wait, then the new faults of the instances that change."""

    after_s: float = 0.0
    after_requests: int = 0
    faults: dict[int, dict[str, Value]] = field(default_factory=dict)  # by the instance's number


def read_script(text: str, instances: int) -> list[Step]:
    """Parse a script.

    Raises:
        WrongFault: a line cannot be used; the text has its number.
    """
    steps = []
    for number, line in enumerate(text.splitlines(), 1):
        if words := line.partition("#")[0].split():
            try:
                steps.append(_step(words, instances))
            except WrongFault as error:
                raise WrongFault(f"line {number}: {error}") from None
    return steps


def _step(words: list[str], instances: int) -> Step:
    wait = _WAIT.fullmatch(words[0])
    if wait is None or len(words) < 2:
        raise WrongFault("write a wait such as 10s or 200requests, then the faults, or ok.")
    faults = assign(words[1:], instances)
    if wait["unit"] == "s":
        return Step(after_s=float(wait["number"]), faults=faults)
    if "." in wait["number"]:
        raise WrongFault("the number of requests must be a whole number.")
    return Step(after_requests=int(wait["number"]), faults=faults)


@dataclass
class MockInstance:
    """One instance of a mock, with its counts so far."""

    number: int  # 1 for the first
    rng: Random  # its own, so that its n-th request always gets the same faults
    port: int = 0
    faults: Faults = field(default_factory=dict)
    requests: int = 0
    connections: int = 0
    open: int = 0  # requests being answered now
    hit: Counter[str] = field(default_factory=Counter)  # requests or connections by fault

    def draw(self) -> Faults:
        """Return the faults of the next request, by chance none, and count them."""
        chance = float(self.faults.get(CHANCE, 1) or 0)
        if not self.faults or self.rng.random() >= chance:
            return {}
        self.hit.update(self.faults.keys() - {CHANCE})
        return self.faults

    def stats(self) -> dict[str, Any]:
        """Return the counts and the current faults, for JSON."""
        counts = {"requests": self.requests, "connections": self.connections, "open": self.open}
        return {"faults": dict(self.faults), **counts, "hit": dict(sorted(self.hit.items()))}


class _FaultyConnection(asyncio.Protocol):
    """Closes each connection (`close`), or fails its TLS handshake (`tls`)."""

    def __init__(self, fault: str) -> None:
        self._fault = fault

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        if self._fault == "close":
            transport.close()

    def data_received(self, data: bytes) -> None:
        assert isinstance(self._transport, asyncio.Transport)
        self._transport.write(TLS_ALERT)
        self._transport.close()


class Mock(ReplyServer):
    """The server.

    Args:
        instances: how many.
        host: the address to listen on.
        port: of the first instance, the others follow; 0 for any free ones.
        seed: of all chance.

    Attributes:
        instances: the instances.
        requests: the number of requests so far.
    """

    def __init__(
        self, instances: int = 1, *, host: str = "127.0.0.1", port: int = 0, seed: int = 0
    ) -> None:
        super().__init__(host)
        self.instances = [MockInstance(n, Random(f"{seed}:{n}")) for n in range(1, instances + 1)]
        self.requests = 0
        self._port = port
        self._received = asyncio.Event()

    def url(self, number: int) -> str:
        """Return an instance's base URL; `tls` and `silent` are part of it."""
        instance = self.instances[number - 1]
        host = f"[{self._host}]" if ":" in self._host else self._host
        host = f"mock-{number}{SILENT}" if "silent" in instance.faults else host
        scheme = "https" if "tls" in instance.faults else "http"
        return f"{scheme}://{host}:{instance.port}/v1"

    def environment(self) -> dict[str, str]:
        """Return the variables that configure a gateway in front of the mock."""
        env: dict[str, str] = {}
        for n in range(1, len(self.instances) + 1):
            values = {"BASE_URL": self.url(n), "MODEL": MODEL, "KEY": f"{KEY}{n}"}
            env |= {f"LOCAL_{name}_{n}": value for name, value in values.items()}
        return env

    def set(self, number: int, faults: Faults) -> None:
        """Replace an instance's faults."""
        self.instances[number - 1].faults = dict(faults)

    async def play(self, steps: Sequence[Step]) -> None:
        """Run a script to its end."""
        for step in steps:
            await asyncio.sleep(step.after_s)
            target = self.requests + step.after_requests
            while self.requests < target:
                self._received.clear()
                await self._received.wait()
            for number, faults in step.faults.items():
                self.set(number, faults)

    async def _listen(self) -> None:
        for instance in self.instances:
            port = self._port and self._port + instance.number - 1
            instance.port = await self._listen_on(port, partial(self._connect, instance))

    def _connect(self, instance: MockInstance) -> asyncio.Protocol:
        instance.connections += 1
        for name in CONNECTION_FAULTS:
            if name in instance.faults:
                return _FaultyConnection(name) if instance.draw() else self._http()
        return self._http()

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        instance = self._instance_of(request)
        self.requests += 1
        self._received.set()
        instance.requests += 1
        instance.open += 1
        try:
            return await super()._handle(request)
        finally:
            instance.open -= 1

    def _instance_of(self, request: web.Request) -> MockInstance:
        key = key_of(request.headers)
        port = request.transport.get_extra_info("sockname")[1] if request.transport else 0
        by_key = [i for i in self.instances if key == f"{KEY}{i.number}"]
        return (by_key or [i for i in self.instances if i.port == port] or self.instances)[0]

    def _reply_to(self, request: web.Request, received: Received) -> Reply:
        fields = _fields_of(received)
        if fields is None and not request.content_type.startswith("multipart/"):
            return Reply(status=400, error=NOT_AN_OBJECT["error"])
        reply, model = Reply(model=MODEL), (fields or {}).get("model")
        if (text := echo(fields or {})) is not None:
            if refusal := poisoned(text):
                return refusal
            reply = replace(reply, text=text)
        if isinstance(model, str):
            reply = replace(reply, model=model)
        instance = self._instance_of(request)
        return apply(reply, instance.draw(), instance.rng)

    def _routes(self) -> Iterable[web.RouteDef]:
        yield web.get("/v1/models", self._models)
        yield web.get("/stats", self._stats)
        for path in ("/faults", "/faults/{number:[0-9]{1,4}}"):
            for method in ("GET", "PUT", "DELETE"):
                yield web.route(method, path, self._control)

    async def _models(self, request: web.Request) -> web.Response:
        model = {"id": MODEL, "object": "model", "created": 0, "owned_by": "mock"}
        return _json({"object": "list", "data": [model]})

    async def _stats(self, request: web.Request) -> web.Response:
        return _json({str(i.number): i.stats() for i in self.instances})

    async def _control(self, request: web.Request) -> web.Response:
        number = request.match_info.get("number")
        selected = [i for i in self.instances if number is None or i.number == int(number)]
        if not selected:
            count = len(self.instances)
            return _json({"error": f"there is no instance {number}; there are {count}."}, 404)
        if request.method != "GET":
            try:
                faults = await _faults_from(request)
            except WrongFault as error:
                return _json({"error": str(error)}, 400)
            for instance in selected:
                instance.faults = dict(faults)
        return _json({str(i.number): dict(i.faults) for i in self.instances})


async def _faults_from(request: web.Request) -> dict[str, Value]:
    if request.method == "DELETE":
        return {}
    try:
        value = json_codec.loads(await request.read())
    except ValueError:
        raise WrongFault("the body is not JSON.") from None
    return read_faults(value)


def _json(value: object, status: int = 200) -> web.Response:
    body = json_codec.dumps(value) + b"\n"
    return web.Response(status=status, body=body, content_type="application/json")


def _fields_of(received: Received) -> Mapping[str, Any] | None:
    """Return the fields of a request's JSON object, None if it is none."""
    try:
        fields: object = received.body
    except ValueError:
        return None
    return fields if isinstance(fields, dict) else None
