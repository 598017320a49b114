"""SealMiner: the cgminer API, from documents."""
