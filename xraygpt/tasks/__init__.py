"""Tasks: what a model is asked and how its answers are scored."""

from xraygpt.tasks import (
    alignment,
    boxes,
    classification,
    contrastive,
    dialogue,
    free_text,
    grounded_reports,
    language_modeling,
    multiple_choice,
    report_generation,
    vqa,
    yes_no,
)

__all__ = [
    "alignment",
    "boxes",
    "classification",
    "contrastive",
    "dialogue",
    "free_text",
    "grounded_reports",
    "language_modeling",
    "multiple_choice",
    "report_generation",
    "vqa",
    "yes_no",
]
