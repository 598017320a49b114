"""The operational store: SQLite tables, one group-commit writer, inline reads."""
