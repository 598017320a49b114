"""The node: owner of one host's GPUs, their gates, their meter readings and their assignment."""
