"""The wire and the vocabulary of HCP: Structs, ids, units, topics, codec; no I/O, no policy."""
