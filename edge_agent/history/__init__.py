"""Commands over the journal: replay, what-if, and why at a past time."""
