"""LuxOS: cgminer JSON with sections of its own; writes need a session."""
