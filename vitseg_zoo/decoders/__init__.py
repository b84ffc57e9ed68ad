"""Heads of the zoo, each beside its mathematics."""

# Importing SMP registers the zoo, which imports the modules of this package: so before theirs.
import segmentation_models_pytorch  # noqa: F401
