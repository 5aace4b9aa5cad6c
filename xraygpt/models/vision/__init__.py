"""Vision encoders and what is trained on top of their features."""
