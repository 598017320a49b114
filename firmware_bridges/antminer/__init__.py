"""Bitmain stock firmware: cgminer API for reads, digest-protected web pages for control."""
