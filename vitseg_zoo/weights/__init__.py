"""Weights: the catalog, checked downloads, conversion of foreign checkpoints, saving and loading."""
