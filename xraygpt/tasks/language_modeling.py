"""Language modelling on text only, to train the language models that the small presets freeze."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from xraygpt.common.registry import registry
from xraygpt.metrics.statistics import Score
from xraygpt.tasks.base import BaseTask, Prediction


@registry.register_task("language_modeling")
class LanguageModeling(BaseTask):
    """Predicts every token of every text; images are not read."""

    @dataclass(kw_only=True)
    class Config(BaseTask.Config):
        """Settings of language modelling, which are those common to all tasks."""

    uses_images = False
    generates = False

    def score(self, predictions: Sequence[Prediction]) -> list[Score]:
        """Return no scores, as the runner reports the loss."""
        return []
