"""Vocabulary for chest X-rays: the rule-based labeller's findings, and MeSH codes as in OpenI."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache

from xraygpt.common.registry import registry
from xraygpt.vocabulary import chest_mesh, chest_questions
from xraygpt.vocabulary.base import Vocabulary
from xraygpt.vocabulary.chest_labeller import FINDINGS, LASTING_FINDINGS, Status, label, mentions


@registry.register_vocabulary("chest_xray")
class ChestXray(Vocabulary):
    """Findings in English chest X-ray reports and codes (``Pulmonary Atelectasis/base/left``)."""

    @dataclass(kw_only=True)
    class Config(Vocabulary.Config):
        """A vocabulary has no settings."""

    findings = FINDINGS
    no_finding = "no_finding"
    other_finding = "other_finding"

    @property
    def example_questions(self) -> tuple[str, ...]:
        """Questions that a reader of chest X-rays asks."""
        return chest_questions.EXAMPLES

    def label(self, text: str) -> Mapping[str, Status]:
        """Label a report with the rules in `chest_labeller`."""
        return label(text)

    def asked_findings(self, question: str) -> list[str]:
        """Return the findings that a question names or, if it names none, those of its topic."""
        return chest_questions.asked_findings(question)

    def asks_for_overview(self, question: str) -> bool:
        """Return whether a question is about the image as a whole."""
        return chest_questions.asks_for_overview(question)

    def is_coded(self, codes: Iterable[str]) -> bool:
        """Return whether the study has any code; "normal" is a code, but "No Indexing" is not."""
        return chest_mesh.is_coded(codes)

    def findings_of(self, codes: Iterable[str]) -> set[str]:
        """Convert MeSH headings to findings with the patterns in `chest_mesh`."""
        return set(chest_mesh.findings_of(codes))

    def coded_findings(self, codes: Iterable[str]) -> set[str]:
        """Convert codes to the labeller's findings, skipping codes without such a finding.

        Codes may be MeSH headings or the output of `codes_of_report`.
        """
        named, mesh_codes = set(), []
        for code in codes:
            name = code.split("/")[0].strip().replace(" ", "_")
            if name in FINDINGS:  # lower case, unlike human codes
                named.add(name)
            else:
                mesh_codes.append(code)
        coded = set(chest_mesh.findings_of(mesh_codes)) & set(FINDINGS) - {"other_finding"}
        return named | coded - {"no_finding"} if named else coded

    def codes_of_report(self, text: str) -> tuple[str, ...]:
        """Return the findings that the labeller detects in a report, in the form of human codes.

        Args:
            text: Findings and impression.

        Returns:
            Codes such as ``("pleural effusion/left",)`` with every side that is named,
            ``("normal",)`` if there are no findings, or an empty tuple if the text is not about a
            chest. Uncertain findings count.
        """
        return _codes_of_report(text)


@lru_cache(maxsize=65536)
def _codes_of_report(text: str) -> tuple[str, ...]:
    names = [name for name, status in label(text).items() if status != "negative"]
    sides = _sides_by_finding(text)
    return tuple("/".join([_heading(name), *sorted(sides.get(name, ()))]) for name in names)


def _heading(finding: str) -> str:
    return "normal" if finding == "no_finding" else finding.replace("_", " ")


def _sides_by_finding(text: str) -> dict[str, set[str]]:
    sides: dict[str, set[str]] = {}
    for mention in mentions(text):
        is_past = mention.historical and mention.finding not in LASTING_FINDINGS
        if mention.status != "negative" and mention.laterality and not is_past:
            sides.setdefault(mention.finding, set()).add(mention.laterality)
    return sides
