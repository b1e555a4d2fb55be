"""`python -m nexus_gateway`."""

from __future__ import annotations

import sys

from nexus_gateway.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
