"""Tasks: what a model is asked and how its answers are scored."""

from xraygpt.tasks import (
    alignment,
    contrastive,
    free_text,
    language_modeling,
    multiple_choice,
    report_generation,
    vqa,
    yes_no,
)

__all__ = [
    "alignment",
    "contrastive",
    "free_text",
    "language_modeling",
    "multiple_choice",
    "report_generation",
    "vqa",
    "yes_no",
]
