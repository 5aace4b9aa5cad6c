"""Vision encoders, and the models trained on top of their features."""
