"""Two systems on the same samples, in pairs: python -m xraygpt.metrics.compare a.jsonl b.jsonl.

Takes two files of predictions (``predictions_true.jsonl`` of two evaluations) and prints, for every
score of words and findings (of answers, where both are of questions), both values, the difference
with its 95 % bootstrap interval over studies, and the p-value of an approximate randomisation test
(Noreen 1989): how often a difference as large comes about when it is a coin toss, study by study,
which of the two answers was whose. Many scores are compared at once; the last column holds p after
Holm's correction (1979) over all lines printed.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from xraygpt.common.cli import readable
from xraygpt.common.errors import InputError
from xraygpt.metrics.coco import coco_scores
from xraygpt.metrics.protocols import R2Gen
from xraygpt.metrics.reports import report_scores
from xraygpt.metrics.statistics import Score, weighted_sum
from xraygpt.metrics.vqa import vqa_scores

log = logging.getLogger(__name__)

TOSSES = 2000


@dataclass(frozen=True)
class Difference:
    """One score of both systems."""

    name: str
    first: float
    second: float
    value: float  # first less second
    low: float  # 95 % interval
    high: float
    p: float  # in (0, 1]
    n: int


def paired(first: Score, second: Score, *, tosses: int = TOSSES, seed: int = 0) -> Difference:
    """Difference of a score on the same samples in the same order.

    Args:
        first: Of one system.
        second: The same metric of the other.
        tosses: Assignments drawn for the test.
        seed: Of these draws.
    """
    ahead = weighted_sum([(1.0, first), (-1.0, second)])
    one, two = _by_group(first), _by_group(second)
    rng = np.random.default_rng(seed)
    total, gap = one.sum(axis=0) + two.sum(axis=0), two - one
    kept = one.sum(axis=0)
    extreme = 0
    for toss in rng.random((tosses, len(one))) < 0.5:
        swapped = kept + toss @ gap
        drawn = first.ratio(swapped) - first.ratio(total - swapped)
        extreme += abs(drawn) >= abs(ahead.value) - 1e-12
    p = (extreme + 1) / (tosses + 1)
    return Difference(
        first.name, first.value, second.value, ahead.value, ahead.low, ahead.high, p, first.n
    )


def holm(values: Sequence[float]) -> list[float]:
    """P-values so adjusted that all tests together err with the stated probability."""
    order = np.argsort(values)
    adjusted, least = [0.0] * len(values), 0.0
    for rank, place in enumerate(order):
        least = max(least, min(1.0, (len(values) - rank) * values[place]))
        adjusted[place] = least
    return adjusted


def compare(first: Path, second: Path, *, tosses: int = TOSSES) -> list[Difference]:
    """Every score of two files of predictions, in pairs.

    Raises:
        InputError: They have no sample in common, or other references for the same sample.
    """
    one, two = _read(first), _read(second)
    common = [i for i in one if i in two]
    if not common:
        raise InputError(f"{first} and {second} have no sample in common")
    left = len(one) + len(two) - 2 * len(common)
    if left:
        log.warning("%d samples stand in one file only and are left out", left)
    other = [i for i in common if one[i]["reference"] != two[i]["reference"]]
    if other:
        raise InputError(
            f"{len(other)} samples have another reference in the other file (first: {other[0]}); "
            "compare evaluations of the same corpus, sections and text processor"
        )
    task = _task(first)
    if _task(second) != task:
        raise InputError(f"{first} and {second} are of two tasks; compare those of one")
    scores = [_scores([rows[i] for i in common], task) for rows in (one, two)]
    named = [{s.name: s for s in one} for one in scores]
    both = [n for n in named[0] if n in named[1]]
    defined = [n for n in both if all(one[n].n and np.isfinite(one[n].value) for one in named)]
    return [paired(*(one[n] for one in named), tosses=tosses) for n in defined]


def as_markdown(rows: Sequence[Difference]) -> str:
    """A table, one line a score."""
    lines = ["| metric | first | second | difference | p | p, Holm | n |", "|---" * 7 + "|"]
    for row, adjusted in zip(rows, holm([r.p for r in rows]), strict=True):
        gap = f"{row.value:+.3f} ({row.low:+.3f} … {row.high:+.3f})"
        lines.append(
            f"| {row.name} | {row.first:.3f} | {row.second:.3f} | {gap} | {row.p:.4f} "
            f"| {adjusted:.4f} | {row.n} |"
        )
    return "\n".join(lines) + "\n"


def _scores(rows: Sequence[dict[str, Any]], task: str) -> list[Score]:
    said, true = [r["prediction"] for r in rows], [r["reference"] for r in rows]
    studies = [r["study_id"] for r in rows]
    if task == "vqa":
        return vqa_scores(said, true, [r["meta"].get("answer_type") for r in rows], studies)
    coco, _ = coco_scores(said, true, R2Gen(None, None), studies)
    return report_scores(said, true, [r["meta"].get("codes") for r in rows], studies) + coco


def _by_group(score: Score) -> np.ndarray:
    """(g, k) counts of each study."""
    if score.groups is None:
        return score.counts
    _, place = np.unique(np.asarray(score.groups), return_inverse=True)
    summed = np.zeros((place.max() + 1, score.counts.shape[1]))
    np.add.at(summed, place, score.counts)
    return summed


def _task(file: Path) -> str:
    """Name of the task in the first line; empty if that does not say."""
    with file.open(encoding="utf-8") as lines:
        heading = json.loads(next(lines))
    task = heading.get("identity", {}).get("task", "")
    return str(task.get("name", "") if isinstance(task, dict) else task)


def _read(file: Path) -> dict[str, dict[str, Any]]:
    """Predictions by sample; the first line is the run's."""
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{file}: {error}") from None
    found = {}
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            if "prediction" in row:
                found[row["sample_id"]] = {"meta": {}, **row}
                row["reference"], row["study_id"]
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise InputError(f"{file}, line {number}: no prediction ({error})") from None
    if not found:
        raise InputError(f"{file}: holds no predictions")
    return found


def main() -> None:
    """Parse, compare, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("first", type=readable)
    parser.add_argument("second", type=readable)
    args = parser.parse_args()
    sys.stdout.write(as_markdown(compare(args.first, args.second)))


if __name__ == "__main__":
    from xraygpt.common.cli import guarded

    sys.exit(guarded(main))
