"""Analyses of whole studies: their contract, their reports, and the files these are written to."""
