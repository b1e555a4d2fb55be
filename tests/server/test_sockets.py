"""Listening: several addresses, and `::` for those of IPv4 as well."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator

import pytest

from nexus_gateway.server.sockets import listen
from nexus_gateway.settings import Settings

needs_ipv6 = pytest.mark.skipif(not socket.has_ipv6, reason="there is no IPv6")


@contextlib.contextmanager
def listening(host: str, slots: int = 1) -> Iterator[list[list[socket.socket]]]:
    with contextlib.ExitStack() as closing:
        listeners = listen(host, 0, slots)
        for one in [one for slot in listeners for one in slot]:
            closing.enter_context(one)
        yield listeners


def answers(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), timeout=5).close()
    except OSError:
        return False
    return True


@needs_ipv6
@pytest.mark.parametrize("slots", [1, 2])
def test_every_address_includes_those_of_ipv4(slots: int) -> None:
    with listening("::", slots) as listeners:
        (port,) = {one.getsockname()[1] for slot in listeners for one in slot}
        assert answers("127.0.0.1", port)
        assert answers("::1", port)


@needs_ipv6
def test_several_addresses_have_one_port() -> None:
    with listening("127.0.0.1, ::1", 2) as listeners:
        assert [len(slot) for slot in listeners] == [2, 2]
        (port,) = {one.getsockname()[1] for slot in listeners for one in slot}
        assert answers("127.0.0.1", port)
        assert answers("::1", port)


def test_a_port_is_not_shared_with_another_gateway() -> None:
    for slots in (1, 2):
        with (
            listening("127.0.0.1", slots) as ((first, *_), *_),
            pytest.raises(OSError, match="use"),
        ):
            listen("127.0.0.1", first.getsockname()[1], slots)


@pytest.mark.parametrize(
    ("host", "is_local"),
    [
        ("127.0.0.1", True),
        ("127.0.0.1, ::1", True),
        ("127.0.0.1,192.168.1.7", False),
        ("::", False),
        ("localhost", True),
    ],
)
def test_a_gateway_is_local_if_all_its_addresses_are(host: str, is_local: bool) -> None:
    assert Settings.from_env({"HOST": host}).is_local is is_local
