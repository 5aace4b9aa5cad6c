"""The forms of verdicts, and checks that reject verdicts which contradict themselves."""

from __future__ import annotations

import json
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from xraygpt.curation.llm.tasks import Task
from xraygpt.metrics.crimson import list_problems
from xraygpt.metrics.green import green_score
from xraygpt.metrics.verdicts import Kind

# Names and docstrings of these classes are part of the JSON schema that the judge is sent.


class _Answer(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class ConversationVerdict(_Answer):
    """One score for all answers."""

    score: int
    reason: str


class Counts(_Answer):
    """Number of errors by category."""

    false_finding: int
    missing_finding: int
    wrong_location: int
    wrong_severity: int
    false_comparison: int
    missing_comparison: int


class GreenVerdict(_Answer):
    """Errors and matched findings of a candidate report."""

    explanation: str
    significant: Counts
    insignificant: Counts
    matched: list[str]


class WeighedFinding(_Answer):
    """A finding with its significance."""

    id: str
    finding: str
    clinical_significance: Literal[
        "urgent", "actionable_not_urgent", "not_actionable_not_urgent", "benign_expected"
    ]


class FindingPair(_Answer):
    """The same finding in both reports."""

    ref_id: str
    pred_id: str


class AttributeDifference(_Answer):
    """A difference within a matched pair."""

    ref_id: str
    pred_id: str
    severity: Literal["significant", "negligible"]
    error_types: list[
        Literal[
            "location", "severity", "descriptor", "measurement", "certainty", "unspecific",
            "overinterpretation", "temporal",
        ]
    ]  # fmt: skip


class FindingErrors(_Answer):
    """What is wrong in the candidate."""

    false_findings: list[str]
    missing_findings: list[str]
    attribute_errors: list[AttributeDifference]


class CrimsonVerdict(_Answer):
    """Findings of both reports, their matches and the errors."""

    reference_findings: list[WeighedFinding]
    predicted_findings: list[WeighedFinding]
    matched_findings: list[FindingPair]
    errors: FindingErrors


class Entailment(_Answer):
    """Whether the other list supports a sentence."""

    number: int
    status: Literal["entailment", "contradiction", "neutral"]
    evidence: list[int]


class RadFactVerdict(_Answer):
    """The sentences of both lists, in order."""

    candidate: list[Entailment]
    reference: list[Entailment]


def _check_conversation(_: str, answer: ConversationVerdict) -> list[str]:
    reasons = []
    if not 0 <= answer.score <= 10:
        reasons.append("the score is not between 0 and 10")
    if not answer.reason.strip() or "\n" in answer.reason.strip():
        reasons.append("the reason is not one line")
    return reasons


def _check_green(_: str, answer: GreenVerdict) -> list[str]:
    counts = [
        *answer.significant.model_dump().values(),
        *answer.insignificant.model_dump().values(),
    ]
    return ["a negative count"] if min(counts) < 0 else []


def _check_crimson(_: str, answer: CrimsonVerdict) -> list[str]:
    return list_problems(answer.model_dump())


def _check_radfact(source: str, answer: RadFactVerdict) -> list[str]:
    """Check the numbers of sentences.

    Args:
        source: JSON with the number of sentences, ``{"candidate": n, "reference": m}``.
        answer: The verdict.
    """
    counts = json.loads(source)
    reasons = []
    for side, other in (("candidate", "reference"), ("reference", "candidate")):
        rows = getattr(answer, side)
        if [row.number for row in rows] != list(range(1, counts[side] + 1)):
            reasons.append(f"{side} does not have the sentences 1 to {counts[side]} in order")
        if any(not 1 <= n <= counts[other] for row in rows for n in row.evidence):
            reasons.append(f"{side} has evidence that is not a sentence of the other list")
        if any(row.status == "entailment" and not row.evidence for row in rows):
            reasons.append(f"an entailed sentence of {side} has no evidence")
    return reasons


JUDGES: dict[Kind, Task] = {
    "conversation": Task(
        "judge_conversation", ConversationVerdict, False, _check_conversation, 300, (0.0, 60)
    ),
    "green": Task("judge_green", GreenVerdict, False, _check_green, 1500, (0.5, 200)),
    "crimson": Task("judge_crimson", CrimsonVerdict, False, _check_crimson, 3000, (1.0, 400)),
    "radfact": Task("judge_radfact", RadFactVerdict, False, _check_radfact, 3000, (1.0, 200)),
}


def stored_verdict(kind: Kind, answer: dict[str, Any]) -> dict[str, Any]:
    """Return what is stored of an accepted verdict: numbers and ids, no report text.

    Args:
        kind: The judge.
        answer: The verdict as JSON.
    """
    if kind == "conversation":
        return {"score": answer["score"]}
    if kind == "green":
        matched, significant = len(answer["matched"]), answer["significant"]
        return {
            "score": green_score(matched, sum(significant.values())), "matched": matched,
            "significant": significant,
        }  # fmt: skip
    if kind == "radfact":
        return {
            side: [
                {"status": row["status"], "evidence": [n - 1 for n in row["evidence"]]}
                for row in answer[side]
            ]
            for side in ("candidate", "reference")
        }
    return _crimson_numbers(answer)


def _crimson_numbers(answer: dict[str, Any]) -> dict[str, Any]:
    """Return CRIMSON's lists with ids of our own, as a judge may put words into ids."""
    sides = {"reference_findings": "R", "predicted_findings": "P"}
    ids = {
        side: {f["id"]: f"{letter}{i}" for i, f in enumerate(answer[side], 1)}
        for side, letter in sides.items()
    }
    reference, predicted = ids.values()

    def pair(row: dict[str, Any]) -> dict[str, Any]:
        found = predicted.get(row["pred_id"], "")
        return {**row, "ref_id": reference[row["ref_id"]], "pred_id": found}

    errors = answer["errors"]
    return {
        **{
            side: [
                {"id": ids[side][f["id"]], "clinical_significance": f["clinical_significance"]}
                for f in answer[side]
            ]
            for side in sides
        },
        "matched_findings": [pair(row) for row in answer["matched_findings"]],
        "errors": {
            "false_findings": [predicted[name] for name in errors["false_findings"]],
            "missing_findings": [reference[name] for name in errors["missing_findings"]],
            "attribute_errors": [pair(row) for row in errors["attribute_errors"]],
        },
    }
