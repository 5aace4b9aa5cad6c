"""On-disk cache of the features computed by frozen encoders."""
