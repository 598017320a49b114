"""Braiins OS(+): the cgminer API, GraphQL (21.09 to 25.05) and REST (25.07 and later)."""
