"""The commands. Only this package reads `os.environ` and prints."""

from nexus_gateway.cli.main import main

__all__ = ["main"]
