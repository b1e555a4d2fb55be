"""The sockets of several workers behind one port.

Each worker has its own, by SO_REUSEPORT, and the kernel (Linux; others may send all to one)
spreads the connections over them. The supervisor holds them all as long as it runs: what waits in
a socket's queue when a worker dies is taken by the next one, so nothing is refused or reset.
"""

from __future__ import annotations

import os
import socket

QUEUE = 1024  # connections that may wait, also while a worker is being replaced


def can_share_a_port() -> bool:
    """Tell whether the platform has what several workers need."""
    return all(hasattr(socket, name) for name in ("SO_REUSEPORT", "AF_UNIX"))


def os_error_text(error: OSError) -> str:
    """Say why a port can't be had; what a loop makes of it repeats the address."""
    number = error.errno or 0  # negative where a name is not found
    return os.strerror(number).lower() if number > 0 else "no such address"


def listen(host: str, port: int, slots: int) -> list[list[socket.socket]]:
    """Listen on one port once for each slot.

    Args:
        host: an address, or a name: then on all its addresses.
        port: 0 for any free one, the same for all.
        slots: how many times.

    Returns:
        For each slot its sockets, one for each address.

    Raises:
        OSError: it cannot be had, or somebody listens there already.
    """
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    addresses = list(dict.fromkeys((family, at[:2]) for family, _, _, _, at in found))
    opened: list[list[socket.socket]] = []
    try:
        for family, address in addresses if port else ():
            # With SO_REUSEPORT a second gateway would take a share of the calls without a word.
            _bound(family, str(address[0]), port, shared=False).close()
        for _ in range(slots):
            opened.append([])
            for family, address in addresses:
                one = _bound(family, str(address[0]), port, shared=True)
                opened[-1].append(one)
                port = port or one.getsockname()[1]
                one.listen(QUEUE)
    except OSError:
        for one in (one for slot in opened for one in slot):
            one.close()
        raise
    return opened


def _bound(family: int, host: str, port: int, *, shared: bool) -> socket.socket:
    one = socket.socket(family, socket.SOCK_STREAM)
    try:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        one.bind((host, port))
    except OSError:
        one.close()
        raise
    one.setblocking(False)
    return one
