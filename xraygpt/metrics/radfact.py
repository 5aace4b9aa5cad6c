"""RadFact: which sentences of two grounded reports support each other, in words and in place.

A judge says for each sentence whether the sentences of the other report entail it, and by which
ones (Bannur et al. 2024, "MAIRA-2: Grounded radiology report generation", arXiv:2406.04449). From
that:

* logical precision and recall: share of the candidate's (reference's) sentences that are entailed;
* spatial precision and recall: share of the sentences with boxes that are entailed, and whose boxes
  lie for more than half of their area inside the boxes of the supporting sentences;
* grounding precision and recall: the same share among entailed sentences with boxes.

Areas are exact, where the authors count pixels of 224 x 224.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from xraygpt.boxes.parsing import parse_boxes
from xraygpt.boxes.spelling import Size
from xraygpt.media.geometry import Box
from xraygpt.metrics.statistics import Score, ratio_score, share_of_sums
from xraygpt.processors.text import split_sentences

INSIDE = 0.5  # share of a sentence's boxes that must lie inside those of its evidence
ENTAILED = "entailment"
NAMES = ("logical", "spatial", "grounding")
# A box in JSON, and a list of such boxes.
_JSON = re.compile(
    r"\{\s*[\"']bbox(?:_2d)?[\"']\s*:\s*(boxmark\d+x)\s*"
    r"(?:,\s*[\"']label[\"']\s*:\s*(?:\"[^\"]*\"|'[^']*')\s*)?\}"
)
_JSON_LIST = re.compile(r"\[((?:\s*boxmark\d+x\s*,?)+)\]")
_MARK, _JOINS = re.compile(r"boxmark\d+x"), frozenset({"and", ""})


@dataclass(frozen=True)
class Sentence:
    """A sentence of a report with its boxes; none if it has no place."""

    text: str
    boxes: tuple[Box, ...] = ()


def grounded_sentences(text: str, spelling: str, size: Size | None = None) -> list[Sentence]:
    """Split a report into sentences, each with the boxes that are written in it or after it.

    Args:
        text: The report.
        spelling: How boxes are written; a key of `boxes.spelling.SPELLINGS`.
        size: See `parse_boxes`.
    """
    found = parse_boxes(text, spelling, size).found
    marked, end = [], 0
    for i, box in enumerate(found):
        marked.append(text[end : box.start])
        marked.append(f" boxmark{i}x ")
        end = box.end
    whole = _JSON.sub(r" \1 ", "".join([*marked, text[end:]]))
    sentences: list[Sentence] = []
    for part in split_sentences(_JSON_LIST.sub(r" \1 ", whole)):
        words = part.split()
        marks = [bool(_MARK.match(word)) for word in words]
        # "and" or ";" between two boxes belongs to neither sentence nor finding.
        joins = [
            word.strip(",;") in _JOINS and marks[i - 1] and marks[min(i + 1, len(words) - 1)]
            for i, word in enumerate(words)
        ]
        numbers = [int(w[7:].partition("x")[0]) for w, is_mark in zip(words, marks, strict=True)
                   if is_mark]  # fmt: skip
        kept = [w for w, m, j in zip(words, marks, joins, strict=True) if not (m or j)]
        plain = " ".join(kept).replace(" .", ".").strip(" ,;")
        has_words = bool(plain.strip(" .,;"))
        # Boxes after the full stop belong to the sentence before it.
        first = next((i for i, m in enumerate(marks) if not m and not joins[i]), len(marks))
        early = sum(marks[:first]) if has_words else len(numbers)
        if sentences and early:
            late = tuple(found[n].box for n in numbers[:early])
            sentences[-1] = replace(sentences[-1], boxes=(*sentences[-1].boxes, *late))
            numbers = numbers[early:]
        if has_words:
            sentences.append(Sentence(plain, tuple(found[n].box for n in numbers)))
    return sentences


def covered_share(boxes: Sequence[Box], others: Sequence[Box]) -> float:
    """Return which share of the area of boxes lies inside others; overlaps count once.

    Args:
        boxes: Boxes (x0, y0, x1, y1).
        others: Boxes.

    Returns:
        A number in [0, 1]; 0 if `boxes` have no area.
    """
    if not boxes or not others:
        return 0.0
    both = [*boxes, *others]
    x = np.unique([edge for box in both for edge in box[::2]])
    y = np.unique([edge for box in both for edge in box[1::2]])
    area = np.diff(x)[:, None] * np.diff(y)[None, :]
    own, other = (_cells(group, x, y) for group in (boxes, others))
    total = (area * own).sum()
    return float((area * (own & other)).sum() / total) if total > 0 else 0.0


def _cells(boxes: Sequence[Box], x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return which cells of a grid of edges lie inside any of the boxes."""
    cells = np.zeros((len(x) - 1, len(y) - 1), dtype=bool)
    for x0, y0, x1, y1 in boxes:
        left, right = np.searchsorted(x, [x0, x1])
        top, bottom = np.searchsorted(y, [y0, y1])
        cells[left:right, top:bottom] = True
    return cells


def one_way(
    sentences: Sequence[Sentence], others: Sequence[Sentence], verdict: Sequence[Mapping[str, Any]]
) -> np.ndarray:
    """Count what is entailed in one direction.

    Args:
        sentences: The n sentences of one report.
        others: The sentences of the other report.
        verdict: For each sentence its ``status`` and the indices of its ``evidence`` in `others`.

    Returns:
        Six sums: entailed, all; with boxes and entailed in place, with boxes; entailed in place,
        entailed with boxes.
    """
    counts = np.zeros(6)
    for sentence, row in zip(sentences, verdict, strict=True):
        entailed = row["status"] == ENTAILED
        evidence = [box for i in row["evidence"] for box in others[i].boxes]
        in_place = entailed and covered_share(sentence.boxes, evidence) > INSIDE
        boxed = bool(sentence.boxes)
        counts += [entailed, 1, boxed and in_place, boxed, boxed and in_place, boxed and entailed]
    return counts


def radfact_scores(
    pairs: Sequence[tuple[Sequence[Sentence], Sequence[Sentence]]],
    verdicts: Sequence[Mapping[str, Any] | None],
    judge: str,
    groups: Sequence[str] | None = None,
) -> list[Score]:
    """Compute RadFact's six numbers.

    Args:
        pairs: Candidate and reference of each study.
        verdicts: ``{"candidate": [...], "reference": [...]}`` for each, see `one_way`; None where
            the judge's answer could not be used, which leaves the pair out.
        judge: Name of the judge, for the signature.
        groups: The study of each pair; intervals resample whole studies.

    Returns:
        ``RadFact_logical_precision`` and so on. Each is the mean over studies, as the authors
        compute it; studies without such sentences are left out of a mean.
    """
    rows = []
    for (candidate, reference), verdict in zip(pairs, verdicts, strict=True):
        if verdict is None:
            rows.append(np.zeros((2, 6)))
            continue
        rows.append(
            np.stack(
                [
                    one_way(candidate, reference, verdict["candidate"]),
                    one_way(reference, candidate, verdict["reference"]),
                ]
            )
        )
    counts = np.array(rows).reshape(-1, 2, 3, 2)
    scores = []
    for i, name in enumerate(NAMES):
        for j, side in enumerate(("precision", "recall")):
            known = counts[:, j, i, 1] > 0
            shares = np.divide(
                counts[:, j, i, 0], counts[:, j, i, 1], out=np.zeros(len(counts)), where=known
            )
            scores.append(
                ratio_score(
                    f"RadFact_{name}_{side}", np.stack([shares, known.astype(float)], axis=1),
                    share_of_sums, f"mean over studies, by {judge}", groups,
                )
            )  # fmt: skip
    return scores
