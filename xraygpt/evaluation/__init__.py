"""Evaluation: predictions, scores, controls, comparisons and the result page."""
