"""`python -m firmware_bridges`: the same commands as `hcp-agent bridge`."""

import sys

from firmware_bridges.tool import main

if __name__ == "__main__":
    sys.exit(main())
