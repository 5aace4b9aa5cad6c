"""Metrics: pure functions of texts and arrays, one module per family."""
