"""Measurements from segmentations, as pure functions of arrays."""
