"""Tasks: what is asked of a model, and how answers are scored."""

from xraygpt.tasks import language_modeling, report_generation, vqa

__all__ = ["language_modeling", "report_generation", "vqa"]
