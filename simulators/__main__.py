"""Entry point of `python -m simulators`, the same as `hcp-sim`."""

import sys

from simulators.main import main

sys.exit(main())
