"""Boxes: normalised to the original image, written into text and read from it, fused."""
