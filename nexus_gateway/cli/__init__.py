"""The commands. The only place that reads `os.environ` and prints."""

from nexus_gateway.cli.main import main

__all__ = ["main"]
