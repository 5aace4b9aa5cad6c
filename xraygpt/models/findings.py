"""Findings that a model predicts for each study, with probabilities."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor


class PredictedFinding(NamedTuple):
    """One finding of one study.

    Attributes:
        name: The finding's name in the vocabulary, such as ``pleural_effusion``.
        probability: In [0, 1].
        threshold: The probability from which the model reports the finding, in [0, 1].
    """

    name: str
    probability: float
    threshold: float

    @property
    def is_present(self) -> bool:
        """Whether the model reports the finding."""
        return self.probability >= self.threshold

    @property
    def likelihood(self) -> str:
        """The probability in a word: "likely", "possible" or "unlikely".

        A finding that the model reports is possible, and likely from 50 %.
        """
        if not self.is_present:
            return "unlikely"
        return "likely" if self.probability >= 0.5 else "possible"


def percent(probability: float) -> str:
    """Format a probability in whole percent, without claiming 0 or 100 %."""
    if probability < 0.01:
        return "under 1 %"
    return "over 99 %" if probability > 0.99 else f"{100 * probability:.0f} %"


@dataclass(frozen=True)
class FindingScores:
    """Probabilities for the findings of B studies.

    Attributes:
        names: F findings.
        thresholds: F probabilities from which findings count as present.
        probabilities: (B, F) float32 in [0, 1].
        codes: K codes that word the findings with side and location; may be empty.
        code_probabilities: (B, K) float32 in [0, 1].
    """

    names: tuple[str, ...]
    thresholds: tuple[float, ...]
    probabilities: Tensor
    codes: tuple[str, ...]
    code_probabilities: Tensor

    def rows(self) -> Iterator[list[PredictedFinding]]:
        """Yield the predicted findings of each study."""
        for row in self.probabilities.tolist():
            yield [
                PredictedFinding(*values)
                for values in zip(self.names, row, self.thresholds, strict=True)
            ]
