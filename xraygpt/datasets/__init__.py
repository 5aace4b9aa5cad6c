"""Corpora: builders turn a folder into datasets of samples; collate makes batches of them."""

from xraygpt.datasets import caption_folder, planted, records, synthetic_cxr

__all__ = ["caption_folder", "planted", "records", "synthetic_cxr"]
