"""Weights: the catalog, checked downloads, conversion of foreign checkpoints, saving and loading."""

# Importing SMP registers the zoo's encoders, which import the modules of this package: so before theirs.
import segmentation_models_pytorch  # noqa: F401
