"""Long-running services of the hub: site sync, placement, and their composition."""
