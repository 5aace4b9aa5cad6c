"""Which part of a model answers a question."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from xraygpt.models.abilities import Abilities
from xraygpt.prompting.content import strip_marks
from xraygpt.vocabulary import Vocabulary

_REPORT = re.compile(
    r"^(?:please |can you |could you )?(?:write|generate|give|draft|dictate|produce|make|create"
    r"|describe|report|provide|interpret)\b(?!.*\bother than\b)"
)


class Kind(Enum):
    """How a question is answered."""

    REPORT = "report"  # the report, with the model's own prompt and its plan
    FINDINGS = "findings"  # probabilities of the findings that the question is about
    OVERVIEW = "overview"  # all findings that the model reports
    FREE = "free"  # by the language model, as asked
    UNSUPPORTED = "unsupported"  # what the model can answer instead
    NO_IMAGE = "no_image"  # a request for an image

    @property
    def is_generated(self) -> bool:
        """Whether the language model writes the answer."""
        return self in (Kind.REPORT, Kind.FREE)


@dataclass(frozen=True)
class Route:
    """How a question is answered.

    Attributes:
        kind: Which part of the model answers.
        findings: For `Kind.FINDINGS`, the findings that the question is about.
    """

    kind: Kind
    findings: tuple[str, ...] = ()


def find_route(
    question: str,
    num_media: int,
    abilities: Abilities,
    vocabulary: Vocabulary,
    *,
    prompts: Sequence[str] = (),
    predictable: Sequence[str] = (),
) -> Route:
    """Decide how a question is answered.

    Args:
        question: The question, with or without media marks; empty asks for the report.
        num_media: Number of media that the question is about.
        abilities: What the model was trained to do.
        vocabulary: Vocabulary of the findings.
        prompts: The model's own prompts for a report.
        predictable: Findings whose probability can be computed. If there are none, a model that
            only writes reports answers from its report.
    """
    text = normalise_question(question)
    if not num_media and abilities.needs_image:
        return Route(Kind.NO_IMAGE)
    standard = {normalise_question(prompt) for prompt in prompts}
    if not text or text in standard:
        return Route(Kind.REPORT if abilities.reports else Kind.FREE)
    free = abilities.questions == "any"
    if not num_media or (free and not predictable):
        return Route(Kind.FREE if free else Kind.UNSUPPORTED)
    asked = vocabulary.asked_findings(text)
    known = tuple(name for name in asked if not predictable or name in predictable)
    if known and (predictable or abilities.reports):
        return Route(Kind.FINDINGS, known)
    if free:
        return Route(Kind.FREE)
    if not asked and abilities.reports and _REPORT.search(text):
        return Route(Kind.REPORT)
    if not asked and vocabulary.asks_for_overview(text):
        return Route(Kind.OVERVIEW if predictable else Kind.REPORT)
    return Route(Kind.UNSUPPORTED)


def normalise_question(question: str) -> str:
    """Return a question in lower case, without media marks and repeated white space."""
    return " ".join(strip_marks(question).lower().split())
