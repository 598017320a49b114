"""Workload drivers of the node: what runs on a GPU, behind one small port."""
