"""Telemetry at the hub: DuckDB behind a port, rows and ledger in one transaction."""
