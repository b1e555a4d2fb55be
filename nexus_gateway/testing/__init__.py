"""For tests of providers: a scriptable upstream on loopback, and a gateway in front of it.

`nexus_gateway.testing.conformance` is the suite that every provider must pass.
"""

from nexus_gateway.testing.gateway import Served, instance_of, serving
from nexus_gateway.testing.reply import Reply
from nexus_gateway.testing.upstream import FakeUpstream
from nexus_gateway.testing.wire import Received, Wire, sse
from nexus_gateway.wire.chunks import Chunk

__all__ = [
    "Chunk",
    "FakeUpstream",
    "Received",
    "Reply",
    "Served",
    "Wire",
    "instance_of",
    "serving",
    "sse",
]
