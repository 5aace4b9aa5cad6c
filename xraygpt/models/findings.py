"""Findings that a model predicts for each study, with probabilities."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor


class HeldOutCounts(NamedTuple):
    """How often a model was right about a finding in images that it was not trained on.

    Attributes:
        present: Number of images with the finding.
        reported: Number of images for which the model reports it.
        correct: Number of images that are both.
    """

    present: int
    reported: int
    correct: int


class PredictedFinding(NamedTuple):
    """One finding of one study.

    Attributes:
        name: The finding's name in the vocabulary, such as ``pleural_effusion``.
        probability: In [0, 1].
        threshold: The probability from which the model reports the finding, in [0, 1].
        counts: How often the model was right about it; None if that was not measured.
    """

    name: str
    probability: float
    threshold: float
    counts: HeldOutCounts | None = None

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
        counts: F counts on held-out images, each None if it was not measured; or empty.
    """

    names: tuple[str, ...]
    thresholds: tuple[float, ...]
    probabilities: Tensor
    codes: tuple[str, ...]
    code_probabilities: Tensor
    counts: tuple[HeldOutCounts | None, ...] = ()

    def rows(self) -> Iterator[list[PredictedFinding]]:
        """Yield the predicted findings of each study."""
        counts = self.counts or (None,) * len(self.names)
        for row in self.probabilities.tolist():
            yield [
                PredictedFinding(*values)
                for values in zip(self.names, row, self.thresholds, counts, strict=True)
            ]
