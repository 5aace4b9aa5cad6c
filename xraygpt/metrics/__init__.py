"""Metrics: pure functions on texts and arrays, one file a family."""
