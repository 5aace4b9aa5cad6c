"""Published texts on which a judge itself can be measured: RadPref's pairs, RadFact's examples."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from xraygpt.common.errors import DataError
from xraygpt.common.numbers import decimal, with_interval
from xraygpt.media.geometry import Box
from xraygpt.metrics.agreement import Candidate, read_radpref
from xraygpt.metrics.radfact import ENTAILED, Sentence, radfact_scores
from xraygpt.metrics.verdicts import Kind, Question, Verdicts, text_key
from xraygpt.tasks.grounded_reports import radfact_question

SIDES = ("candidate", "reference")


@dataclass(frozen=True)
class Pair:
    """Two lists of sentences, and what experts say about them.

    Attributes:
        name: Its id.
        candidate: Sentences of one report.
        reference: Sentences of the other.
        statuses: The experts' status of each sentence, by side; None if they gave none.
    """

    name: str
    candidate: tuple[Sentence, ...]
    reference: tuple[Sentence, ...]
    statuses: Mapping[str, Sequence[str]] | None = None

    @property
    def question(self) -> Question:
        """What a judge is asked."""
        return radfact_question(self.candidate, self.reference, self.name)


def radpref_questions(folder: Path, kind: Kind) -> list[Question]:
    """Return the questions about RadPref's 200 candidates.

    Raises:
        InputError: The folder does not contain RadPref.
        DataError: A file has another form.
    """
    found: dict[str, Question] = {}
    for candidate in read_radpref(folder):
        question = _report_question(kind, candidate)
        found.setdefault(question.key, question)
    return list(found.values())


def _report_question(kind: Kind, candidate: Candidate) -> Question:
    texts = {"reference": candidate.reference, "candidate": candidate.text}
    key = text_key(kind, candidate.text, candidate.reference)
    return Question(key, texts, f"{candidate.study_id}/{candidate.system}")


def read_radfact(path: Path) -> list[Pair]:
    """Read RadFact's examples: grounded reports with their targets, or cases with statuses.

    Args:
        path: ``grounded_reporting_examples.json`` or ``test_examples.json`` of RadFact.

    Raises:
        DataError: The file has another form.
    """
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
        return [_case(row) if "input" in row else _report(row) for row in rows]
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path} is not a file of RadFact's examples ({type(error).__name__}: {error})"
        ) from None


def _report(row: Mapping[str, Any]) -> Pair:
    sides = [tuple(map(_sentence, row[side])) for side in ("prediction", "target")]
    return Pair(str(row["example_id"]), sides[0], sides[1])


def _sentence(row: Mapping[str, Any]) -> Sentence:
    corners = ("x_min", "y_min", "x_max", "y_max")
    boxes = [tuple(float(box[corner]) for corner in corners) for box in row["boxes"] or ()]
    return Sentence(row["text"], tuple(cast(Box, box) for box in boxes))


def _case(row: Mapping[str, Any]) -> Pair:
    sides = [tuple(map(Sentence, row["input"][f"phrases_{side}"])) for side in "AB"]
    statuses = {
        name: [each["status"] for each in row["output"][f"phrases_{side}_evidenced"]]
        for name, side in zip(SIDES, "AB", strict=True)
    }
    return Pair(str(row["example_id"]), sides[0], sides[1], statuses)


def as_text(pairs: Sequence[Pair], verdicts: Verdicts) -> str:
    """Return RadFact's scores, and how often the judge agrees with the experts where there are any.

    Args:
        pairs: The pairs.
        verdicts: Verdicts on all of them.
    """
    rows = [verdicts.values[pair.question.key] for pair in pairs]
    scores = radfact_scores(
        [(pair.candidate, pair.reference) for pair in pairs], rows, verdicts.judge,
        [pair.name for pair in pairs],
    )  # fmt: skip
    lines = ["| score | value |", "|---|---|"]
    lines += [f"| {s.name} | {with_interval(s.as_row())} |" for s in scores if s.value == s.value]
    same, entailed, total = agreement(pairs, rows)
    if total:
        lines.append(f"| same status as the experts | {decimal(same / total)} of {total} |")
        lines.append(f"| same on entailed or not | {decimal(entailed / total)} of {total} |")
    return "\n".join(lines) + "\n"


def agreement(
    pairs: Sequence[Pair], verdicts: Sequence[Mapping[str, Any] | None]
) -> tuple[int, int, int]:
    """Count sentences on which a judge agrees with the experts.

    Returns:
        Sentences with the same of three statuses; sentences that both or neither call entailed;
        and all. A verdict that could not be used agrees on nothing.
    """
    same = entailed = total = 0
    for pair, verdict in zip(pairs, verdicts, strict=True):
        for side in SIDES if pair.statuses is not None else ():
            assert pair.statuses is not None
            truth = pair.statuses[side]
            total += len(truth)
            if verdict is not None:
                said = [row["status"] for row in verdict[side]]
                same += sum(a == b for a, b in zip(said, truth, strict=True))
                entailed += sum(
                    (a == ENTAILED) == (b == ENTAILED) for a, b in zip(said, truth, strict=True)
                )
    return same, entailed, total
