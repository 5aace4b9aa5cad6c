"""Synthetic chest radiographs drawn from structured findings, with reports, for tests and demos.

They are drawings. Every file is marked SYNTHETIC, and results on them say nothing about patients.
"""
