"""Tokens, passwords and rate limits of the hub."""
