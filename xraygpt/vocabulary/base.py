"""What a vocabulary of findings offers to corpora, tasks and probes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import ClassVar, Literal

from xraygpt.common.registry import VOCABULARIES, Plugin, Registry

Status = Literal["positive", "negative", "uncertain"]


class Vocabulary(Plugin):
    """The findings of one kind of study, and the languages they are told in.

    Attributes:
        findings: Names of all findings, ``pleural_effusion``.
        no_finding: The finding that says that there is none; "" if there is no such name.
        other_finding: The finding for what has no name; "" if there is no such name.
        normal: What a study with nothing to find is called in words.
    """

    @dataclass(kw_only=True)
    class Config(Plugin.Config):
        """A vocabulary has no settings."""

        kind: ClassVar[Registry] = VOCABULARIES

    findings: tuple[str, ...]
    no_finding = ""
    other_finding = ""
    normal = "normal"

    def __init__(self, config: Config | None = None) -> None:
        self.config = config or self.Config()

    def __reduce__(self) -> tuple[object, ...]:
        """Pickled as its name."""
        return vocabulary_of, (VOCABULARIES.name_of(type(self)),)

    @property
    def nameable(self) -> list[str]:
        """Findings that can be asked about: all but the two that stand for none and for others."""
        return [n for n in self.findings if n not in (self.no_finding, self.other_finding)]

    def label(self, text: str) -> Mapping[str, Status]:
        """Findings that a report names, and whether it affirms, denies or doubts them."""
        raise NotImplementedError

    def positive(self, text: str) -> set[str]:
        """Findings that a report affirms or suspects."""
        return {name for name, status in self.label(text).items() if status != "negative"}

    def question(self, finding: str) -> str:
        """The yes/no question about a finding."""
        return f"Is there {self.in_words(finding)}?"

    def in_words(self, finding: str) -> str:
        """A finding's name as people write it: ``pleural effusion``."""
        return finding.replace("_", " ")

    def is_coded(self, codes: Iterable[str]) -> bool:
        """Whether anybody coded the study."""
        return any(code.strip() for code in codes)

    def findings_of(self, codes: Iterable[str]) -> set[str]:
        """What human codes (``heading/place/side/degree``) mean, in names of findings."""
        raise NotImplementedError

    def coded_findings(self, codes: Iterable[str]) -> set[str]:
        """As `findings_of`, without what has no name; codes that are names already stay."""
        return {f for f in self.findings_of(codes) if f and f != self.other_finding}

    def codes_of_report(self, text: str) -> tuple[str, ...]:
        """What a report says, written as a person would code it."""
        return tuple(sorted(self.in_words(name) for name in self.positive(text)))


@cache
def vocabulary_of(name: str) -> Vocabulary:
    """The vocabulary registered as `name`; `KeyError` with the nearest names if there is none."""
    made: Vocabulary = VOCABULARIES.get(name).Config().build()
    return made
