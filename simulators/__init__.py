"""Simulators of devices, markets, links: real wire bytes, device physics, seeded faults."""
