"""Arithmetic of the networks, torch only: a plain form of each operation, and one that is fast on a CPU."""

# First of all, as importing timm imports the zoo's encoders, which need the modules below whole.
import timm.layers  # noqa: F401
