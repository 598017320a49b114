"""HTTP as miners speak it: the wire, and the ways they authenticate."""
