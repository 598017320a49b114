"""One module per promised figure; each gives its figures with their conditions as JSON."""
