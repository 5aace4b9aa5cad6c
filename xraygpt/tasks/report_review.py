"""Marks sentences of a report that contradict each other or the predicted findings."""

from __future__ import annotations

import re
from collections.abc import Sequence

from xraygpt.models.findings import PredictedFinding, percent
from xraygpt.processors.text import sentence_spans
from xraygpt.tasks.payload import Payload, Remark
from xraygpt.vocabulary import Vocabulary

NORMAL_NOTE = "A normal draft means nothing: the model misses many findings."
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
        payload["note"] = NORMAL_NOTE
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
    """List the sentences of a report that contradict another sentence or a predicted finding.

    Two sentences contradict each other if one affirms a finding that the other denies, unless they
    name different sides.

    Args:
        report: The report.
        findings: The findings predicted from the image; may be empty.
        vocabulary: Vocabulary whose labeller reads the sentences.
    """
    spans = sentence_spans(report)
    sentences = [report[start:end] for start, end in spans]
    affirmed, denied = _named_findings(sentences, vocabulary)
    predicted = {finding.name: finding for finding in findings}
    remarks = []
    for i, (start, end) in enumerate(spans):
        reasons = [
            f"contradicts “{_shorten(sentences[j])}”"
            for j in range(len(spans))
            if i != j
            and (affirmed[i] & denied[j] or denied[i] & affirmed[j])
            and not _different_sides(sentences[i], sentences[j])
        ]
        reasons += _against_prediction(affirmed[i], denied[i], predicted, vocabulary)
        if reasons:
            remarks.append(Remark(start=start, end=end, text="; ".join(dict.fromkeys(reasons))))
    return remarks


def _named_findings(
    sentences: Sequence[str], vocabulary: Vocabulary
) -> tuple[list[set[str]], list[set[str]]]:
    """Return the findings that each sentence affirms, and those that it denies."""
    ignored = {vocabulary.no_finding, vocabulary.other_finding}
    labels = [vocabulary.label(sentence) for sentence in sentences]
    affirmed = [{n for n, s in row.items() if s == "positive"} - ignored for row in labels]
    denied = [{n for n, s in row.items() if s == "negative"} - ignored for row in labels]
    return affirmed, denied


def _against_prediction(
    affirmed: set[str],
    denied: set[str],
    predicted: dict[str, PredictedFinding],
    vocabulary: Vocabulary,
) -> list[str]:
    reasons = []
    for name in sorted((affirmed | denied) & set(predicted)):
        finding = predicted[name]
        if finding.is_present != (name in affirmed):
            word = "likely" if finding.is_present else "unlikely"
            reasons.append(
                f"from the image, the model finds {vocabulary.in_words(name)} {word} "
                f"({percent(finding.probability)})"
            )
    return reasons


def _different_sides(a: str, b: str) -> bool:
    sides = [set(_SIDE.findall(text.lower())) for text in (a, b)]
    return all(sides) and not sides[0] & sides[1]


def _shorten(text: str) -> str:
    return text if len(text) <= _MAX_QUOTE else f"{text[: _MAX_QUOTE - 1]}…"
