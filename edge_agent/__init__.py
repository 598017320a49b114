"""The site agent and the node: decide, switch, meter and sync, with or without the network."""
