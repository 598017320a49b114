"""Market feeds: where prices come from, and how old they are."""
