"""Tasks: what is asked of a model, and how answers are scored."""

from xraygpt.tasks import contrastive, language_modeling, report_generation, vqa, yes_no

__all__ = ["contrastive", "language_modeling", "report_generation", "vqa", "yes_no"]
