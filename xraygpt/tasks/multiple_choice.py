"""Multiple-choice questions answered by likelihood."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch

from xraygpt.common.errors import InputError
from xraygpt.common.registry import registry
from xraygpt.datasets.base import Batch
from xraygpt.metrics.statistics import Score, ratio_score
from xraygpt.models.base import BaseModel
from xraygpt.prompting.choices import option_letters
from xraygpt.tasks import questions
from xraygpt.tasks.base import Answer, BaseTask, Comparison, Prediction


@registry.register_task("multiple_choice")
class MultipleChoice(BaseTask):
    """Chooses the option whose letter is the likeliest answer, and computes the accuracy.

    Nothing is decoded, so that every question is answered. Answers have the form ``B 0.62``, where
    the number is the probability among the question's options.
    """

    @dataclass(kw_only=True)
    class Config(BaseTask.Config):
        """Settings of multiple-choice questions."""

        end: str = ""
        """Text after the letter in training answers, such as `.`."""

    config: Config
    page_title = "answers to multiple-choice questions"
    shuffle_per_image = True
    deciding_scores: ClassVar[Mapping[str, str]] = {"accuracy": "accuracy"}

    @torch.no_grad()
    def predict(self, model: BaseModel, prompts: Batch) -> list[Answer]:
        """Compute the probability of each option of each row.

        Raises:
            InputError: A question has no lettered options.
        """
        letters = [option_letters(question) for question in prompts["question"]]
        for name, found in zip(prompts["sample_id"], letters, strict=True):
            if not found:
                raise InputError(
                    f"{name}: the question has no options A., B. …; name their columns as "
                    "fields.options, or use the task vqa"
                )
        asked = max(letters, key=len)
        renderer: Any = model.renderer
        losses = torch.stack(
            [
                model(
                    questions.append_answer(prompts, renderer.answer_ids(f"{x}{self.config.end}"))
                ).row_loss.float()
                for x in asked
            ],
            dim=1,
        )
        return [
            _answer(found, -row[: len(found)]) for found, row in zip(letters, losses, strict=True)
        ]

    def score(self, predictions: Sequence[Prediction]) -> list[Score]:
        """Compute the accuracy, that of guessing, and the mean probability of the right option."""
        right = [_letter(p.prediction) == _letter(p.reference) for p in predictions]
        chance = [1 / max(len(option_letters(p.prompt)), 2) for p in predictions]
        studies = [p.study_id for p in predictions]
        scores = [
            _mean("accuracy", right, studies, "likeliest option"),
            _mean("accuracy_of_chance", chance, studies, "1 / number of options"),
        ]
        probabilities = [p.payload.get("probabilities") for p in predictions]
        if all(probabilities):
            given = [
                float(p.get(_letter(x.reference), 0.0))
                for p, x in zip(probabilities, predictions, strict=True)
                if p
            ]
            scores.append(_mean("probability_of_truth", given, studies, "among the options"))
        return scores

    def compare(self, prediction: Prediction) -> Comparison:
        """Return whether the likeliest option is right."""
        letter = [_letter(prediction.reference)]
        if _letter(prediction.prediction) == letter[0]:
            return Comparison(agreed=letter)
        return Comparison(missed=letter)


def _answer(letters: str, likelihoods: torch.Tensor) -> Answer:
    values = likelihoods.softmax(dim=0).tolist()
    best = max(range(len(letters)), key=lambda i: values[i])
    payload: Any = {"probabilities": dict(zip(letters, values, strict=True))}
    return Answer(f"{letters[best]} {values[best]:.6f}", payload)


def _letter(text: str) -> str:
    return text.strip()[:1].upper()


def _mean(name: str, values: Sequence[float | bool], studies: Sequence[str], how: str) -> Score:
    counts = np.stack([np.asarray(values, dtype=float), np.ones(len(values))], axis=1)
    return ratio_score(name, counts, lambda c: float(c[0] / max(c[1], 1)), how, studies)
