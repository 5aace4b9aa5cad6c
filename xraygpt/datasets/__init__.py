"""Corpora: builders that read folders into datasets of samples, and collation into batches."""

from xraygpt.datasets import (
    caption_folder,
    instruction_items,
    llama_factory,
    llava,
    planted,
    records,
    studies,
    synthetic_cxr,
)

__all__ = [
    "caption_folder",
    "instruction_items",
    "llama_factory",
    "llava",
    "planted",
    "records",
    "studies",
    "synthetic_cxr",
]
