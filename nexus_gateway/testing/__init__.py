"""For tests of providers and gateways: a scriptable upstream on loopback."""

from nexus_gateway.testing.reply import Reply
from nexus_gateway.testing.upstream import FakeUpstream, Received

__all__ = ["FakeUpstream", "Received", "Reply"]
