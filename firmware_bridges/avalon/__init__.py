"""Canaan Avalon: the cgminer API, with a text of `KEY[value]` for each hash module."""
