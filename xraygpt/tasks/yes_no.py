"""Questions answered by probability: how likely the model holds yes, ranked against the truth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from xraygpt.common.checks import Checks
from xraygpt.common.errors import InputError
from xraygpt.common.registry import registry
from xraygpt.datasets.base import Batch
from xraygpt.metrics.probabilities import probability_scores
from xraygpt.metrics.statistics import Score
from xraygpt.metrics.vqa import normalise
from xraygpt.models.base import BaseModel
from xraygpt.prompting.content import without_marks
from xraygpt.tasks import plan
from xraygpt.tasks.base import Answer, BaseTask, Comparison, Prediction


@registry.register_task("yes_no")
class YesNo(BaseTask):
    """AUROC, average precision, Brier score and F1 of each question from P(yes).

    Nothing is decoded: the two answers are weighed against each other. An answer is written as
    ``yes 0.873`` or ``no 0.214``, the number being the probability of yes.
    """

    @dataclass(kw_only=True)
    class Config(BaseTask.Config):
        """Settings of yes/no questions."""

        yes: str = "yes."
        """How the model was trained to affirm."""
        no: str = "no."
        """How it was trained to deny."""
        min_positives: int = 8
        """A question needs so many studies with the answer yes to be scored, and as many as one
        with no."""

        def __post_init__(self) -> None:
            with Checks(self) as check:
                same = normalise(self.yes) == normalise(self.no)
                check.refuse(same, "no", f"is the same answer as yes ({self.yes!r})", "yes")

    config: Config
    whole_studies = True

    def predict(self, model: BaseModel, prompts: Batch) -> list[Answer]:
        """P(yes) of each row, by the likelihood of either answer with its end."""
        found = plan.yes_probability(model, prompts, self.config.yes, self.config.no)
        return [
            Answer(f"{'yes' if p >= 0.5 else 'no'} {p:.6f}", {"probabilities": {"yes": p}})
            for p in found.tolist()
        ]

    def score(self, predictions: Sequence[Prediction]) -> list[Score]:
        """Scores of each question that enough studies affirm, and their means.

        Raises:
            InputError: An answer is no probability: the file is of another task.
        """
        names = sorted({_asked(p) for p in predictions})
        column = {name: i for i, name in enumerate(names)}
        row: dict[str, int] = {}
        for p in predictions:
            row.setdefault(_sample(p), len(row))
        said = np.zeros((len(row), len(names)))
        truth = np.full((len(row), len(names)), np.nan)
        studies = [""] * len(row)
        for p in predictions:
            at = row[_sample(p)], column[_asked(p)]
            said[at] = _probability(p)
            truth[at] = self._truth(p.reference)
            studies[at[0]] = p.study_id
        open_ = int(sum(np.isnan(self._truth(p.reference)) for p in predictions))
        self.left_out = (
            {"questions": f"{open_} have a reference that is neither yes nor no"} if open_ else {}
        )
        return probability_scores(
            said, truth, names, min_positives=self.config.min_positives, groups=studies
        )

    def _truth(self, reference: str) -> float:
        """1 or 0 by how a reference begins; NaN if it is neither answer."""
        words = normalise(reference)
        for value, answer in ((1.0, self.config.yes), (0.0, self.config.no)):
            known = normalise(answer)
            if words == known or words.startswith(f"{known} "):
                return value
        return float("nan")

    def compare(self, prediction: Prediction) -> Comparison:
        """Whether the likelier answer is right."""
        said = 1.0 if prediction.prediction.split(" ")[0] == "yes" else 0.0
        right = said == self._truth(prediction.reference)
        name = [_asked(prediction)]
        return Comparison(agreed=name) if right else Comparison(missed=name)


def _asked(prediction: Prediction) -> str:
    """What a question is about: the heading, or its words."""
    words = without_marks(prediction.prompt)
    for opening in ("Is this coded: ", "Is there "):
        words = words.removeprefix(opening)
    return words.removesuffix("?")


def _sample(prediction: Prediction) -> str:
    name = _asked(prediction)
    return prediction.sample_id.removesuffix(f"/{name}").removesuffix(f"/{name.replace(' ', '_')}")


def _probability(prediction: Prediction) -> float:
    words = prediction.prediction.split(" ")
    plain = {"yes": 1.0, "no": 0.0}  # what a control takes from the training answers
    try:
        return float(words[1]) if len(words) > 1 else plain[normalise(words[0])]
    except (KeyError, ValueError):
        raise InputError(
            f"{prediction.sample_id}: '{prediction.prediction[:40]}' is no answer of the task "
            "yes_no; score these predictions with the task that made them"
        ) from None
