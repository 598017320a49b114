"""Version of the hub, as `hcp-hub version` prints it."""

VERSION = "0.1.0"
