"""The reference workloads: a miner and an inference server, real programs to switch and check."""
