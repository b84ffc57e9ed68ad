"""Weights: the catalogue, checked downloads, conversion of foreign checkpoints, saving and loading."""
