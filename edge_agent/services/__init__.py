"""Services of the agent: they run the pure core against the ports."""
