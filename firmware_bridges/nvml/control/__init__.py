"""The privileged helper: five settings of a card, within bounds, for callers that are named."""
