"""MSKMiner: answers of Bitmain's shape, and a page of its own for the network."""
