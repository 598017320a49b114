"""Scrypt machines whose pages have Bitmain's shape: Elphapex and Hammer."""
