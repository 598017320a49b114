"""Durable storage of the agent: core database, telemetry segments, hot file."""
