"""Yes/no questions answered by probability, with P(yes) scored against the references."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from xraygpt.common.checks import Checks
from xraygpt.common.errors import InputError
from xraygpt.common.registry import registry
from xraygpt.datasets.base import Batch
from xraygpt.metrics.probabilities import probability_scores
from xraygpt.metrics.statistics import Score
from xraygpt.metrics.vqa import normalise
from xraygpt.models.base import BaseModel
from xraygpt.prompting.content import strip_marks
from xraygpt.tasks import questions
from xraygpt.tasks.base import Answer, BaseTask, Comparison, Prediction


@registry.register_task("yes_no")
class YesNo(BaseTask):
    """Computes AUROC, average precision, Brier score and F1 for each question from P(yes).

    Nothing is decoded: the likelihoods of the two answers are compared. Answers have the form
    ``yes 0.873`` or ``no 0.214``, where the number is P(yes).
    """

    @dataclass(kw_only=True)
    class Config(BaseTask.Config):
        """Settings of yes/no questions."""

        yes: str = "yes."
        """The affirmative answer used in training."""
        no: str = "no."
        """The negative answer used in training."""
        min_positives: int = 8
        """Minimum number of samples with the answer yes for a question to be scored; one sample
        with the answer no suffices."""

        def __post_init__(self) -> None:
            with Checks(self) as check:
                same = normalise(self.yes) == normalise(self.no)
                check.refuse(same, "no", f"is the same as the answer for yes ({self.yes!r})", "yes")

    config: Config
    page_title = "answers to yes/no questions"
    shuffle_per_image = True
    deciding_scores: ClassVar[Mapping[str, str]] = {"AUROC_macro": "mean AUROC"}

    def predict(self, model: BaseModel, prompts: Batch) -> list[Answer]:
        """Compute P(yes) for each row from the likelihoods of the two answers."""
        probabilities = questions.yes_probability(model, prompts, self.config.yes, self.config.no)
        return [
            Answer(f"{'yes' if p >= 0.5 else 'no'} {p:.6f}", {"probabilities": {"yes": p}})
            for p in probabilities.tolist()
        ]

    def score(self, predictions: Sequence[Prediction]) -> list[Score]:
        """Score each question with enough positive and negative samples, and average the scores.

        Raises:
            InputError: An answer contains no probability because another task wrote it.
        """
        names = sorted({_question_name(p) for p in predictions})
        columns = {name: i for i, name in enumerate(names)}
        rows: dict[str, int] = {}
        for p in predictions:
            rows.setdefault(_base_sample_id(p), len(rows))
        probabilities = np.zeros((len(rows), len(names)))
        truth = np.full((len(rows), len(names)), np.nan)
        studies = [""] * len(rows)
        for p in predictions:
            row, column = rows[_base_sample_id(p)], columns[_question_name(p)]
            probabilities[row, column] = _parse_probability(p)
            truth[row, column] = self._parse_reference(p.reference)
            studies[row] = p.study_id
        undecided = int(sum(np.isnan(self._parse_reference(p.reference)) for p in predictions))
        self.left_out = {}
        if undecided:
            reason = f"{undecided} samples have a reference that is neither yes nor no"
            self.left_out["questions"] = reason
        return probability_scores(
            probabilities, truth, names, min_positives=self.config.min_positives, groups=studies
        )

    def _parse_reference(self, reference: str) -> float:
        """Return 1 or 0 by the first words of a reference, or NaN for neither answer."""
        text = normalise(reference)
        for value, answer in ((1.0, self.config.yes), (0.0, self.config.no)):
            expected = normalise(answer)
            if text == expected or text.startswith(f"{expected} "):
                return value
        return float("nan")

    def compare(self, prediction: Prediction) -> Comparison:
        """Return whether the likelier answer is right."""
        predicted = 1.0 if prediction.prediction.split(" ")[0] == "yes" else 0.0
        name = [_question_name(prediction)]
        if predicted == self._parse_reference(prediction.reference):
            return Comparison(agreed=name)
        return Comparison(missed=name)


def _question_name(prediction: Prediction) -> str:
    """Return the finding or code a question is about, or the question itself for other wordings."""
    text = strip_marks(prediction.prompt)
    for opening in ("Is this coded: ", "Is there "):
        text = text.removeprefix(opening)
    return text.removesuffix("?")


def _base_sample_id(prediction: Prediction) -> str:
    """Return the sample id without the question at its end."""
    name = _question_name(prediction)
    return prediction.sample_id.removesuffix(f"/{name}").removesuffix(f"/{name.replace(' ', '_')}")


def _parse_probability(prediction: Prediction) -> float:
    parts = prediction.prediction.split(" ")
    plain = {"yes": 1.0, "no": 0.0}  # controls use training answers, which have no number
    try:
        return float(parts[1]) if len(parts) > 1 else plain[normalise(parts[0])]
    except (KeyError, ValueError):
        raise InputError(
            f"{prediction.sample_id}: '{prediction.prediction[:40]}' is not an answer of the "
            "task yes_no; score these predictions with the task that wrote them"
        ) from None
