"""Weights: the catalogue, downloads that are checked, conversion of foreign checkpoints, saving and loading."""
