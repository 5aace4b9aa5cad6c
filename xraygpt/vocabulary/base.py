"""Interface for vocabularies of findings."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import ClassVar

from xraygpt.common.registry import VOCABULARIES, Plugin, Registry
from xraygpt.vocabulary.traits import Contradiction, Status, Trait, TraitReading

__all__ = ["Status", "Vocabulary", "get_vocabulary"]


class Vocabulary(Plugin):
    """The findings of one kind of study, and how reports, codes and questions express them.

    Attributes:
        findings: Names of all findings, such as ``pleural_effusion``.
        no_finding: Name that means the absence of findings; "" if there is none.
        other_finding: Name for abnormalities without a name of their own; "" if there is none.
        normal: Text that describes a study without findings.
        traits: Properties that reports grade or measure, in the order of tables; empty for a
            vocabulary whose findings are only present or absent.
    """

    @dataclass(kw_only=True)
    class Config(Plugin.Config):
        """A vocabulary has no settings."""

        kind: ClassVar[Registry] = VOCABULARIES

    findings: tuple[str, ...]
    no_finding = ""
    other_finding = ""
    normal = "normal"
    traits: tuple[Trait, ...] = ()

    def __init__(self, config: Config | None = None) -> None:
        self.config = config or self.Config()

    def __reduce__(self) -> tuple[object, ...]:
        """Pickle the vocabulary by its registered name."""
        return get_vocabulary, (VOCABULARIES.name_of(type(self)),)

    @property
    def askable_findings(self) -> list[str]:
        """Findings that can be asked about: all except `no_finding` and `other_finding`."""
        return [n for n in self.findings if n not in (self.no_finding, self.other_finding)]

    @property
    def example_questions(self) -> Sequence[str]:
        """Questions to offer to a user; by default, one for each of the first findings."""
        return [self.question(name) for name in self.askable_findings[:8]]

    def label(self, text: str) -> Mapping[str, Status]:
        """Return the status of each finding that a report mentions."""
        raise NotImplementedError

    def positive(self, text: str) -> set[str]:
        """Return the findings that a report affirms or suspects."""
        return {name for name, status in self.label(text).items() if status != "negative"}

    def read_traits(self, text: str) -> TraitReading:
        """Return the values of the traits that a report states, and its contradictions."""
        return TraitReading()

    def contradictions(self, text: str) -> Sequence[Contradiction]:
        """Return pairs of a report's sentences that cannot both be true; by default, by traits."""
        return self.read_traits(text).contradictions

    def question(self, finding: str) -> str:
        """Return the yes/no question about a finding."""
        return f"Is there {self.in_words(finding)}?"

    def in_words(self, finding: str) -> str:
        """Return a finding's name as written in text: ``pleural effusion``."""
        return finding.replace("_", " ")

    def finding_of_question(self, question: str) -> str | None:
        """Return the finding if the text is the wording of `question` for one; otherwise None."""
        wordings = {self.question(name).lower(): name for name in self.findings}
        return wordings.get(" ".join(question.lower().split()))

    def asked_findings(self, question: str) -> list[str]:
        """Return the findings that a free question is about; by default, those it names."""
        text = f" {re.sub(r'[^a-z0-9]+', ' ', question.lower())} "
        return [n for n in self.askable_findings if f" {self.in_words(n).lower()} " in text]

    def asks_for_overview(self, question: str) -> bool:
        """Return whether a free question is about the study as a whole."""
        return "finding" in question.lower() or "normal" in question.lower()

    def is_coded(self, codes: Iterable[str]) -> bool:
        """Return whether the study has been coded."""
        return any(code.strip() for code in codes)

    def findings_of(self, codes: Iterable[str]) -> set[str]:
        """Return the findings that human codes (``heading/place/side/degree``) stand for."""
        raise NotImplementedError

    def coded_findings(self, codes: Iterable[str]) -> set[str]:
        """Return `findings_of` without `other_finding`; codes may also be names of findings."""
        return {f for f in self.findings_of(codes) if f and f != self.other_finding}

    def codes_of_report(self, text: str) -> tuple[str, ...]:
        """Return a report's findings in the form of human codes."""
        return tuple(sorted(self.in_words(name) for name in self.positive(text)))


@cache
def get_vocabulary(name: str) -> Vocabulary:
    """Return the vocabulary registered as `name`; raise a `KeyError` if there is none."""
    vocabulary: Vocabulary = VOCABULARIES.get(name).Config().build()
    return vocabulary
