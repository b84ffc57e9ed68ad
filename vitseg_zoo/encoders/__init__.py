"""Encoders of the zoo: timm models, and timm models in the form of SMP's encoders."""

# Importing timm's models registers the zoo's, which imports the modules of this package: so before theirs.
import timm.models  # noqa: F401
