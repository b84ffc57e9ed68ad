"""Encoders of the zoo: timm models, and timm models in the form of SMP's encoders."""

# Importing either registers the zoo's models, which imports the modules of this package: so before theirs.
import segmentation_models_pytorch  # noqa: F401
import timm.models  # noqa: F401
