"""Traits: properties that a report grades or measures, and what a report says about them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Status = Literal["positive", "negative", "uncertain"]
TraitKind = Literal["present", "graded", "number"]

#: Severity from least to most. Neighbours are one step apart.
GRADES: tuple[str, ...] = (
    "none",
    "trace",
    "mild",
    "mild-moderate",
    "moderate",
    "moderate-severe",
    "severe",
)
MILD, SEVERE = GRADES.index("mild"), GRADES.index("severe")


@dataclass(frozen=True)
class Trait:
    """One property of a study.

    Attributes:
        name: Name of the trait, such as ``mitral_regurgitation``.
        kind: ``present`` traits are present or absent; ``graded`` traits have a severity of
            `GRADES`; ``number`` traits have a value.
        criterion: When the trait counts as positive, in words; what a number measures.
        question: The yes/no question about it; empty for numbers.
        views: Names of the views that can show it.
        modes: Imaging modes that can show it, such as ``colour Doppler``.
        source: Paper or guideline of the criterion and its limits.
        positive_from: Lowest grade that counts as positive (graded traits).
        unit: Unit of a number.
        limits: Smallest and largest possible number.
    """

    name: str
    kind: TraitKind
    criterion: str
    question: str = ""
    views: tuple[str, ...] = ()
    modes: tuple[str, ...] = ()
    source: str = ""
    positive_from: str = "moderate"
    unit: str = ""
    limits: tuple[float, float] = (0.0, 0.0)

    @property
    def is_number(self) -> bool:
        """Whether the trait has a value instead of being present or absent."""
        return self.kind == "number"


@dataclass(frozen=True)
class TraitValue:
    """What a report, or one of its sentences, says about a trait.

    Attributes:
        status: Whether the trait is affirmed, denied or doubted at any severity.
        low: Index in `GRADES` of the lowest grade that the words allow.
        high: Index of the highest grade that they allow; equal to `low` for one grade.
        number: Value of a number trait, the midpoint of a range; None for other traits.
        bounds: Lower and upper limit of a number; equal to it if the report gives no range.
        span: Start and end in the text of the sentence that says so.
    """

    status: Status
    low: int = MILD
    high: int = SEVERE
    number: float | None = None
    bounds: tuple[float, float] | None = None
    span: tuple[int, int] = (0, 0)

    @property
    def grade(self) -> str | None:
        """The severity in `GRADES`; None for a number and if the words leave it open.

        "Mild to moderate" is one grade. Of "trace to mild", which has no grade of its own, the
        more severe one counts.
        """
        is_open = self.low == 0 and self.high > 1  # "no significant"
        if self.number is not None or is_open or self.high - self.low > 2:
            return None
        return GRADES[(self.low + self.high + 1) // 2]

    def is_positive(self, trait: Trait) -> bool | None:
        """Return whether the trait's criterion is met; None if the words leave it open.

        A doubted trait counts as if it were affirmed.
        """
        if self.status == "negative":
            return False
        if trait.kind == "present":
            return True
        threshold = GRADES.index(trait.positive_from)
        grade = self.grade
        if grade is not None:
            return GRADES.index(grade) >= threshold
        return True if self.low >= threshold else False if self.high < threshold else None


@dataclass(frozen=True)
class Contradiction:
    """Two sentences of one report that cannot both be true.

    Attributes:
        about: Name of the trait.
        first: Start and end of the first sentence in the text.
        second: Start and end of the second sentence.
        reason: What the sentences say, in words.
    """

    about: str
    first: tuple[int, int]
    second: tuple[int, int]
    reason: str


@dataclass(frozen=True)
class TraitReading:
    """All that a report says about traits.

    Attributes:
        values: The value of each trait that the report mentions.
        contradictions: Pairs of sentences that contradict each other.
    """

    values: Mapping[str, TraitValue] = field(default_factory=dict)
    contradictions: tuple[Contradiction, ...] = ()
