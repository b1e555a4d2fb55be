"""The commands. Only this package prints."""

from nexus_gateway.cli.main import main

__all__ = ["main"]
