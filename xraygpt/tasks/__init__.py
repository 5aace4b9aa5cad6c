"""Tasks: what is asked of a model, and how answers are scored."""

from xraygpt.tasks import alignment, contrastive, language_modeling, report_generation, vqa, yes_no

__all__ = ["alignment", "contrastive", "language_modeling", "report_generation", "vqa", "yes_no"]
