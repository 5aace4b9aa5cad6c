"""Rewriting reports with a language model: prompts, endpoint, limits, ledger, calls, batches."""
