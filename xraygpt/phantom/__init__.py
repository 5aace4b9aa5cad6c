"""Synthetic chest radiographs drawn from structured findings, with reports: for tests and tours.

They are drawings. Every file says SYNTHETIC; nothing measured on them is a claim about patients.
"""
