"""Marks sentences of a report that contradict each other or the predicted findings."""

from __future__ import annotations

import re
from collections.abc import Sequence, Set
from typing import NamedTuple

from xraygpt.models.findings import PredictedFinding, percent
from xraygpt.processors.text import lacks_word, sentence_spans
from xraygpt.tasks.payload import Payload, Remark
from xraygpt.vocabulary import Vocabulary
from xraygpt.vocabulary.traits import Contradiction

NORMAL_NOTE = "A normal draft means nothing: the model misses many findings."
_COMPARISON = re.compile(
    r"\b(?:stable|unchanged|interval|compar(?:ed|ison)|resolved|worsen(?:ed|ing)|improv(?:ed|ing)"
    r"|no (?:significant )?change|again (?:noted|seen|demonstrated)"
    r"|(?:prior|previous) (?:exam\w*|stud\w+|films?|images?|imaging|radiographs?|x-?rays?))\b",
    re.IGNORECASE,
)
_SIDE = re.compile(r"\b(?:left|right)\b")
_MAX_QUOTE = 60


def is_normal(report: str, vocabulary: Vocabulary) -> bool:
    """Return whether a report names no finding."""
    return not vocabulary.positive(report) - {vocabulary.no_finding}


def report_payload(
    report: str, findings: Sequence[PredictedFinding], vocabulary: Vocabulary
) -> Payload:
    """Return what accompanies a report: the predicted findings and remarks on its sentences.

    Args:
        report: The report.
        findings: The findings predicted from the image; may be empty.
        vocabulary: Vocabulary whose labeller reads the sentences.
    """
    payload = finding_payload(findings)
    remarks = review(report, findings, vocabulary)
    if remarks:
        payload["remarks"] = remarks
    if is_normal(report, vocabulary):
        present = [f for f in findings if f.is_present and f.name != vocabulary.no_finding]
        names = ", ".join(vocabulary.in_words(finding.name) for finding in present)
        unmentioned = f" This one leaves out findings that it predicts: {names}." if names else ""
        payload["note"] = f"{NORMAL_NOTE}{unmentioned}"
    return payload


def finding_payload(findings: Sequence[PredictedFinding]) -> Payload:
    """Return the present findings and all probabilities; empty without findings."""
    if not findings:
        return Payload()
    return Payload(
        findings=[finding.name for finding in findings if finding.is_present],
        probabilities={finding.name: finding.probability for finding in findings},
    )


def review(
    report: str, findings: Sequence[PredictedFinding], vocabulary: Vocabulary
) -> list[Remark]:
    """List doubtful sentences of a report about one study.

    These contradict another sentence or a predicted finding, lack a word, or compare with earlier
    images, of which the model sees none. Two sentences contradict each other if one affirms a
    finding that the other denies, unless they name different sides.

    Args:
        report: The report.
        findings: The findings predicted from the image; may be empty.
        vocabulary: Vocabulary whose labeller reads the sentences.
    """
    spans = sentence_spans(report)
    sentences = [report[start:end] for start, end in spans]
    named = [named_findings(sentence, vocabulary) for sentence in sentences]
    predicted = {finding.name: finding for finding in findings}
    contradictions = vocabulary.contradictions(report)
    remarks = []
    for i, (start, end) in enumerate(spans):
        reasons = [
            f"contradicts “{_shorten(sentences[j])}”"
            for j in range(len(spans))
            if i != j and contradict(named[i], named[j])
        ]
        reasons += [
            f"contradicts “{_shorten(report[slice(*other)])}”"
            for other in _contradicting_spans((start, end), contradictions)
        ]
        reasons += _against_prediction(*named[i][:2], predicted, vocabulary)
        if lacks_word(sentences[i]):
            reasons.append("a word is missing")
        if _COMPARISON.search(sentences[i]):
            reasons.append("the model has not seen an earlier image")
        if reasons:
            remarks.append(Remark(start=start, end=end, text="; ".join(dict.fromkeys(reasons))))
    return remarks


def _contradicting_spans(
    span: tuple[int, int], contradictions: Sequence[Contradiction]
) -> list[tuple[int, int]]:
    """Return the spans of the sentences that contradict the sentence at `span`."""
    pairs = [(c.first, c.second) for c in contradictions]
    return [
        other
        for one, other in (*pairs, *((second, first) for first, second in pairs))
        if span[0] <= one[0] < span[1]
    ]


class NamedFindings(NamedTuple):
    """What a sentence says about findings.

    Attributes:
        affirmed: Findings that it affirms.
        denied: Findings that it denies.
        sides: "left" and "right", if it names them.
        is_normal: Whether it says that nothing is abnormal; None if it is about something else.
    """

    affirmed: frozenset[str]
    denied: frozenset[str]
    sides: frozenset[str]
    is_normal: bool | None


def named_findings(sentence: str, vocabulary: Vocabulary) -> NamedFindings:
    """Return what a sentence says about the findings of a vocabulary."""
    ignored = {vocabulary.no_finding, vocabulary.other_finding}
    labels = vocabulary.label(sentence)
    return NamedFindings(
        frozenset(name for name, status in labels.items() if status == "positive") - ignored,
        frozenset(name for name, status in labels.items() if status == "negative") - ignored,
        frozenset(_SIDE.findall(sentence.lower())),
        labels.get(vocabulary.no_finding) == "positive" if labels else None,
    )


def repeats(a: NamedFindings, b: NamedFindings) -> bool:
    """Return whether a sentence says nothing about findings that another does not say."""
    says_something = bool(a.affirmed or a.denied)
    return (
        says_something
        and a.affirmed <= b.affirmed
        and a.denied <= b.denied
        and (a.sides <= b.sides or not b.sides)
    )


def contradict(a: NamedFindings, b: NamedFindings) -> bool:
    """Return whether a sentence affirms what another denies, unless they name different sides."""
    different_sides = a.sides and b.sides and not a.sides & b.sides
    return bool(a.affirmed & b.denied or a.denied & b.affirmed) and not different_sides


def _against_prediction(
    affirmed: Set[str],
    denied: Set[str],
    predicted: dict[str, PredictedFinding],
    vocabulary: Vocabulary,
) -> list[str]:
    reasons = []
    for name in sorted((affirmed | denied) & set(predicted)):
        finding = predicted[name]
        if finding.is_present != (name in affirmed):
            reasons.append(
                f"from the image, the model finds {vocabulary.in_words(name)} "
                f"{finding.likelihood} "
                f"({percent(finding.probability)})"
            )
    return reasons


def _shorten(text: str) -> str:
    return text if len(text) <= _MAX_QUOTE else f"{text[: _MAX_QUOTE - 1]}…"
