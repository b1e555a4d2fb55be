"""`python -m nexus_gateway` is `nexus-gateway`."""

import sys

from nexus_gateway.cli import main

if __name__ == "__main__":
    sys.exit(main())
