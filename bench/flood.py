"""A reader that stalls: reads the head of a large stream, pauses, then reads the rest.

    python bench/flood.py PORT MIB STALL_S [--model NAME] [--header NAME:VALUE …]

Prints one line of JSON: whether every byte arrived, and how many seconds the rest took.
"""

from __future__ import annotations

import argparse
import json
import socket
import time

from load import LAST, request_for

PIECE = 1024 * 1024
# Upper bound for each `x` outside the content, as in "index", in all events together.
STRAY = 1024 * 1024
READ_S = 60.0


def read(port: int, request: bytes, stall_s: float) -> tuple[int, bytes]:
    """Send the request and read the response; return the size of its content, and its end."""
    with socket.create_connection(("127.0.0.1", port), READ_S) as connection:
        connection.sendall(request)
        data = connection.recv(512)
        time.sleep(stall_s)
        letters, tail, end_s = data.count(b"x"), data, time.monotonic() + READ_S
        while not tail.endswith(LAST) and time.monotonic() < end_s:
            data = connection.recv(PIECE)
            if not data:
                break
            letters += data.count(b"x")
            tail = (tail + data)[-256:]
    return letters, tail


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("port", type=int)
    parser.add_argument("mib", type=int)
    parser.add_argument("stall_s", type=float)
    parser.add_argument("--model", default="any")
    parser.add_argument("--header", action="append", default=[], metavar="NAME:VALUE")
    arguments = parser.parse_args()
    request = request_for(
        arguments.port, f"flood-{arguments.mib}", arguments.model, arguments.header
    )
    begun_s = time.monotonic()
    letters, tail = read(arguments.port, request, arguments.stall_s)
    size = arguments.mib * 1024 * 1024
    complete = size <= letters <= size + STRAY and b"[DONE]" in tail and tail.endswith(LAST)
    spent_s = time.monotonic() - begun_s - arguments.stall_s
    print(json.dumps({"complete": complete, "seconds": round(spent_s, 3)}))


if __name__ == "__main__":
    main()
