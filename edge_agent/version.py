"""Version of the agent, as `hcp-agent version` prints it."""

VERSION = "0.1.0"
