"""Bitaxe and its relatives (AxeOS): one page of JSON."""
