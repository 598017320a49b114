"""Drivers of engines: one module for each kind of miner or server, and what they share."""
