"""Phantom reports in many wordings: abnormal findings, normal findings and the impression."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from importlib import resources
from random import Random
from typing import Any

import yaml

from xraygpt.phantom.findings import Finding

_CHOICE = re.compile(r"\[([^\[\]]*)\]")
_SLOT = re.compile(r"<(\w+)(?::(\w+))?>")
_PRIOR = re.compile(r"\b(again|unchanged|stable|persist\w*|previous\w*|prior|interval)\b", re.I)
# Findings with which a radiologist would still report no acute disease.
_QUIET = frozenset({"calcified_granuloma", "hyperinflation", "pacemaker", "catheter"})


def generate_report(findings: Sequence[Finding], rng: Random) -> dict[str, str]:
    """Generate a report that describes `findings`.

    Args:
        findings: The findings of the study.
        rng: Chooses the wording.

    Returns:
        ``{"findings": …, "impression": …}``.
    """
    abnormal = [_describe(finding, "say", rng) for finding in findings]
    rng.shuffle(abnormal)
    normal = _normal_sentences(findings, rng)
    # Some radiologists begin with the abnormal findings, others with the normal ones.
    sentences = [*normal, *abnormal] if rng.random() < 0.5 else [*abnormal, *normal]
    impression = _impression_sentences(findings, rng)
    return {
        "findings": " ".join(s for s in sentences if s),
        "impression": " ".join(s for s in impression if s),
    }


def grounded_sentences(
    findings: Sequence[Finding], rng: Random
) -> tuple[list[tuple[Finding, str]], list[str]]:
    """Generate one sentence for each finding, and sentences about normal anatomy.

    No sentence refers to an earlier image, and each is true without the others.

    Args:
        findings: The findings of the study.
        rng: Chooses the wording.

    Returns:
        Pairs of a finding and its sentence, and the sentences that describe nothing abnormal.
    """
    described = [(finding, _without_priors(finding, rng)) for finding in findings]
    normal = [sentence for sentence in _normal_sentences(findings, rng, alone=True) if sentence]
    return described, normal


def _without_priors(finding: Finding, rng: Random) -> str:
    """Write a sentence about a finding that compares it with no earlier image."""
    while _PRIOR.search(sentence := _describe(finding, "say", rng)):
        pass
    return sentence


def _normal_sentences(findings: Sequence[Finding], rng: Random, alone: bool = False) -> list[str]:
    """Sample sentences about normal anatomy that the findings do not contradict.

    Args:
        findings: The findings of the study.
        rng: Chooses the wording.
        alone: Whether each sentence will be read without the others.
    """
    shown = {f.name for f in findings}
    sentences = []
    for row in _grammar()["normal"]:
        denies = [*row["denies"], *(row.get("denies_alone", ()) if alone else ())]
        absent = not shown.intersection(denies)
        relevant = "unless" not in row or shown.intersection(row["unless"])
        if absent and relevant and rng.random() < 0.85:
            sentences.append(expand(rng.choice(row["say"]), rng))
    return sentences


def _impression_sentences(findings: Sequence[Finding], rng: Random) -> list[str]:
    grammar = _grammar()
    if not findings:
        return [expand(rng.choice(grammar["conclude_normal"]), rng)]
    sentences = [_describe(finding, "conclude", rng) for finding in findings]
    if _QUIET.issuperset(f.name for f in findings):
        sentences.append(expand(rng.choice(grammar["conclude_stable"]), rng))
    return sentences


def expand(pattern: str, rng: Random) -> str:
    """Resolve every ``[a|b]`` from the inside out, then fix blanks and the first letter's case."""
    while match := _CHOICE.search(pattern):
        choice = rng.choice(match[1].split("|"))
        pattern = pattern[: match.start()] + choice + pattern[match.end() :]
    text = re.sub(r"\s+", " ", pattern).replace(" ,", ",").replace(" .", ".").strip()
    return text[:1].upper() + text[1:]


def _describe(finding: Finding, part: str, rng: Random) -> str:
    """Write a sentence about a finding; `part` is ``say`` (findings) or ``conclude``."""
    grammar = _grammar()
    entry = grammar["findings"][finding.name]
    if finding.side == "bilateral" and "both" in entry:
        entry = entry["both"]
    degrees = grammar["degrees"]
    words = {
        "side": finding.side,
        "zone": grammar["zones"].get(finding.zone, ""),
        "degree": degrees.get(finding.name, degrees["default"]).get(finding.degree, ""),
        "size": f"{finding.size_mm:.0f}",
    }

    def fill_slot(match: re.Match[str]) -> str:
        name, ending = match[1], match[2]
        word = expand(words[name.lower()], rng).lower()
        if ending and word:
            word += ending
        return word[:1].upper() + word[1:] if name[0].isupper() else word

    text = expand(_SLOT.sub(fill_slot, rng.choice(entry[part])), rng)
    return re.sub(r"\b([Aa]) (?=[aeiou]|8\b|11\b|18\b)", r"\1n ", text)


@cache
def _grammar() -> dict[str, Any]:
    text = (resources.files("xraygpt") / "data" / "phantom_reports.yaml").read_text("utf-8")
    content: dict[str, Any] = yaml.safe_load(text)
    return content
