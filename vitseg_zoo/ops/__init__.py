"""Arithmetic of the networks, torch only: a plain form of each operation, and one that is fast on a CPU."""
