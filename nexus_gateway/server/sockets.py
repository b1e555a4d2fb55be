"""The listening sockets of several workers behind one port.

Each worker has sockets of its own, by SO_REUSEPORT, and the kernel (Linux; others may use only one)
spreads the connections over them. The supervisor holds all of them as long as it runs: if a worker
dies, the next one accepts what waits in its queue, so nothing is refused or reset.
"""

from __future__ import annotations

import contextlib
import os
import socket

from nexus_gateway.settings import hosts_of

QUEUE = 1024  # connections that may wait, also while a worker is being replaced


def can_share_a_port() -> bool:
    return all(hasattr(socket, name) for name in ("SO_REUSEPORT", "AF_UNIX"))


def os_error_text(error: OSError) -> str:
    """Return why listening failed; asyncio's own text would repeat the address."""
    number = error.errno or 0  # negative if a host name is not found
    return os.strerror(number).lower() if number > 0 else "no such address"


def listen(host: str, port: int, slots: int) -> list[list[socket.socket]]:
    """Listen on one port, once for each slot; return for each slot a socket for each address.

    `host` may be several, separated by commas, and a name stands for all its addresses; `::` is
    every address, also of IPv4. Port 0 is any free one, the same for all. Raises OSError if an
    address is not available, or if another process listens there.
    """
    infos = [
        info
        for name in hosts_of(host)
        for info in socket.getaddrinfo(name, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    ]
    addresses = list(dict.fromkeys((family, str(address[0])) for family, *_, address in infos))
    # What `::` covers already cannot be listened to again.
    every = (socket.AF_INET6, "::") in addresses and socket.has_dualstack_ipv6()
    if every:
        addresses = [(socket.AF_INET6, "::")]
    shared = slots > 1
    listeners: list[list[socket.socket]] = []
    with contextlib.ExitStack() as on_error:
        for family, address in addresses if port and shared else ():
            # With SO_REUSEPORT a second gateway would silently take a share of the connections.
            socket.create_server((address, port), family=family, dualstack_ipv6=every).close()
        for _ in range(slots):
            listeners.append([])
            for family, address in addresses:
                at = (address, port)
                listener = socket.create_server(
                    at, family=family, backlog=QUEUE, reuse_port=shared, dualstack_ipv6=every
                )
                listener.setblocking(False)
                listeners[-1].append(on_error.enter_context(listener))
                port = port or listener.getsockname()[1]
        on_error.pop_all()
    return listeners
