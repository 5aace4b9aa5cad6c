"""Vocabulary for echocardiograms: traits read from reports by rules."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from xraygpt.common.registry import registry
from xraygpt.vocabulary.base import Vocabulary
from xraygpt.vocabulary.echo_reader import read_report
from xraygpt.vocabulary.echo_rules import echo_rules
from xraygpt.vocabulary.traits import Status, Trait, TraitReading


@registry.register_vocabulary("echo")
class Echo(Vocabulary):
    """The traits of English echocardiogram reports.

    A trait that is not a number is a finding, which is positive if its criterion is met, such as
    regurgitation that is moderate or worse. Codes are names of findings.
    """

    @dataclass(kw_only=True)
    class Config(Vocabulary.Config):
        """A vocabulary has no settings."""

    @property
    def traits(self) -> tuple[Trait, ...]:  # type: ignore[override]
        """The traits in the order of tables."""
        return echo_rules().traits

    @property
    def findings(self) -> tuple[str, ...]:  # type: ignore[override]
        """Names of the traits that are not numbers."""
        return tuple(trait.name for trait in self.traits if not trait.is_number)

    def read_traits(self, text: str) -> TraitReading:
        """Return the traits that a report states and its contradictions."""
        return read_report(text)

    def label(self, text: str) -> Mapping[str, Status]:
        """Return the status of each finding: whether its criterion is met.

        A finding whose severity is left open, such as "mitral regurgitation", is uncertain.
        """
        values = self.read_traits(text).values
        labels: dict[str, Status] = {}
        for trait in self.traits:
            if trait.is_number or trait.name not in values:
                continue
            value = values[trait.name]
            positive = value.is_positive(trait)
            if positive is None or (positive and value.status == "uncertain"):
                labels[trait.name] = "uncertain"
            else:
                labels[trait.name] = "positive" if positive else "negative"
        return labels

    def question(self, finding: str) -> str:
        """Return the yes/no question about a finding, which names its criterion."""
        return next(trait.question for trait in self.traits if trait.name == finding)

    def findings_of(self, codes: Iterable[str]) -> set[str]:
        """Return the findings among codes, which may be followed by a grade."""
        names = {code.split("/")[0].strip().lower().replace(" ", "_") for code in codes}
        return names & set(self.findings)
