"""Hiveon: answers of Bitmain's shape, with power for each board."""
