"""Proto rig: the maker's REST."""
