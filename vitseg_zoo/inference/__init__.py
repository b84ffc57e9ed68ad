"""Prediction of one image, a folder, or an image larger than memory."""
