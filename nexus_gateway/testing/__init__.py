"""For tests of providers and gateways: a scriptable upstream on loopback."""

from nexus_gateway.testing.upstream import FakeUpstream, Received, Reply

__all__ = ["FakeUpstream", "Received", "Reply"]
