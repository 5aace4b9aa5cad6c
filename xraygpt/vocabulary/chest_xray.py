"""Findings of chest X-rays: the rule-based labeller's names, and MeSH as OpenI was coded."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache

from xraygpt.common.registry import registry
from xraygpt.vocabulary import chest_mesh
from xraygpt.vocabulary.base import Vocabulary
from xraygpt.vocabulary.chest_labeller import FINDINGS, LASTING_FINDINGS, Status, label, mentions


@registry.register_vocabulary("chest_xray")
class ChestXray(Vocabulary):
    """English reports of chest X-rays, and codes such as ``Pulmonary Atelectasis/base/left``."""

    @dataclass(kw_only=True)
    class Config(Vocabulary.Config):
        """A vocabulary has no settings."""

    findings = FINDINGS
    no_finding = "no_finding"
    other_finding = "other_finding"

    def label(self, text: str) -> Mapping[str, Status]:
        """By rules, see `metrics.findings`."""
        return label(text)

    def is_coded(self, codes: Iterable[str]) -> bool:
        """Whether the indexers gave any code; "normal" is one, "No Indexing" is none."""
        return chest_mesh.is_coded(codes)

    def findings_of(self, codes: Iterable[str]) -> set[str]:
        """By MeSH headings, see `metrics.mesh`."""
        return set(chest_mesh.findings_of(codes))

    def coded_findings(self, codes: Iterable[str]) -> set[str]:
        """What codes mean in the labeller's names; what it has no name for is left out.

        Codes that it wrote itself (`codes_of_report`) are these names already.
        """
        own, rest = set(), []
        for code in codes:
            name = code.split("/")[0].strip().replace(" ", "_")
            if name in FINDINGS:  # the labeller writes small letters, people do not
                own.add(name)
            else:
                rest.append(code)
        found = set(chest_mesh.findings_of(rest)) & set(FINDINGS) - {"other_finding"}
        return own | found - {"no_finding"} if own else found

    def codes_of_report(self, text: str) -> tuple[str, ...]:
        """What the rule-based labeller reads in a report, written as a person would code it.

        Args:
            text: Findings and impression.

        Returns:
            ``("pleural effusion/left",)`` with every side named, ``("normal",)`` if there is
            nothing to find, and nothing at all for a text that does not speak of a chest. Doubted
            findings count.
        """
        return _codes_of_report(text)


@lru_cache(maxsize=65536)
def _codes_of_report(text: str) -> tuple[str, ...]:
    held = [name for name, status in label(text).items() if status != "negative"]
    placed: dict[str, set[str]] = {}
    for mention in mentions(text):
        past = mention.historical and mention.finding not in LASTING_FINDINGS
        if mention.status != "negative" and mention.laterality and not past:
            placed.setdefault(mention.finding, set()).add(mention.laterality)
    return tuple(
        "/".join(["normal" if name == "no_finding" else spaced, *sorted(placed.get(name, ()))])
        for name, spaced in ((name, name.replace("_", " ")) for name in held)
    )
