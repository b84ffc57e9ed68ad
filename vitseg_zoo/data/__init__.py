"""Data sets and albumentations pipelines."""
