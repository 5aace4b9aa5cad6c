"""How far metrics agree with radiologists: python -m xraygpt.metrics.agreement DATA.

DATA contains RadPref (github.com/rajpurkarlab/CRIMSON, MIT): 100 studies, each with a reference
report and two candidates, which three radiologists rated from 1 to 5. For each metric, the card
prints, with 95 % intervals that resample studies:

    tau       Kendall's tau-b with the mean rating of all 200 candidates
    r         Pearson's correlation with it
    within    tau within the candidates of each system, averaged: the pairs always come from the
              same two systems, so a metric that only tells the systems apart has a high tau and
              nothing here
    prefers   share of studies in which it prefers the candidate that the radiologists prefer
    number    share of reports with a number whose score falls when one number is changed, and by
              how much on average
    urgent    mean score of candidates that miss a finding a radiologist called urgent, beside the
              mean of all others

Verdicts of a judge on these reports join the card: write them with
python -m xraygpt.judge green DATA --out FOLDER …, and name FOLDER with --verdicts. Report texts are
never printed. Research use only.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from xraygpt.common.cli import existing_path, run_main
from xraygpt.common.errors import DataError, InputError
from xraygpt.common.numbers import decimal

SYSTEMS = ("C1", "C2")
RESAMPLES = 1000
NOTICE = "Research use only, not for diagnosis."


@dataclass(frozen=True)
class Candidate:
    """A candidate report with its ratings.

    Attributes:
        study_id: Its study.
        system: The system that wrote it.
        text: The report.
        reference: The reference report.
        ratings: One from 1 to 5 for each radiologist.
        missed_urgent: Whether a radiologist lists a missed finding as urgent.
    """

    study_id: str
    system: str
    text: str
    reference: str
    ratings: tuple[float, ...]
    missed_urgent: bool


@dataclass
class MetricAgreement:
    """The agreement of one metric.

    Attributes:
        name: The metric.
        n: Number of candidates with a value.
        values: ``tau``, ``r``, ``within`` and ``prefers``: (value, low, high); nan if undefined.
        number: Share of reports whose score falls with a changed number, its mean fall, and their
            count.
        urgent: Mean score of candidates with a missed urgent finding, and of the others.
    """

    name: str
    n: int
    values: dict[str, tuple[float, float, float]]
    number: tuple[float, float, int] = (float("nan"), float("nan"), 0)
    urgent: tuple[float, float] = (float("nan"), float("nan"))


@dataclass
class Card:
    """The metric card.

    Attributes:
        studies: Number of studies.
        systems: The systems and their mean ratings.
        readers: Kendall's tau of each pair of radiologists.
        urgent: Number of candidates that miss an urgent finding.
        metrics: One entry for each metric.
    """

    studies: int
    systems: dict[str, float]
    readers: list[float]
    urgent: int
    metrics: list[MetricAgreement] = field(default_factory=list)


def read_radpref(folder: Path) -> list[Candidate]:
    """Read the candidates of RadPref, two for each study, in order.

    Raises:
        InputError: The folder does not contain RadPref.
        DataError: A file has another form.
    """
    root = next((p for p in (folder, folder / "RadPref") if (p / "preference_data.json").is_file()),
                None)  # fmt: skip
    if root is None:
        raise InputError(
            f"{folder} contains no RadPref/preference_data.json; get it from "
            "github.com/rajpurkarlab/CRIMSON"
        )
    try:
        studies = json.loads((root / "preference_data.json").read_text(encoding="utf-8"))
        readers = [
            json.loads(path.read_text(encoding="utf-8"))["annotations"]
            for path in sorted((root / "radiologist_annotations").glob("*.json"))
        ]
        return [
            _candidate(study, name, [reader[study["id"]][name] for reader in readers])
            for study in studies
            for name in SYSTEMS
        ]
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise DataError(f"{root}: RadPref has another form ({reason})") from None


def _candidate(
    study: Mapping[str, Any], name: str, notes: Sequence[Mapping[str, Any]]
) -> Candidate:
    missed = [m["clinical_significance"] for n in notes for m in n["missing_findings"].values()]
    return Candidate(
        study["id"], study[f"{name}_source"], study[f"{name}_report"],
        study["ground_truth_report"], tuple(float(note["rating"]) for note in notes),
        "urgent" in missed,
    )  # fmt: skip


# ---- Values of metrics ---------------------------------------------------------------------------


def text_metrics(predictions: Sequence[str], references: Sequence[str]) -> dict[str, np.ndarray]:
    """Return the value of each text metric for each report, (n,) float64; nan where undefined."""
    from xraygpt.metrics.coco import coco_scores
    from xraygpt.metrics.protocols import R2Gen
    from xraygpt.metrics.quantities import number_aware_scores
    from xraygpt.metrics.reports import report_scores
    from xraygpt.metrics.statistics import ratios_of_rows

    scores = report_scores(predictions, references, [None] * len(predictions))
    scores += coco_scores(predictions, references, R2Gen(None, None))[0]
    scores += number_aware_scores(predictions, references)
    kept = (
        "BLEU-1", "BLEU-2", "BLEU-4", "ROUGE-1", "ROUGE-2", "ROUGE-L", "COCO BLEU-4", "CIDEr-D",
        "findings_text_F1", "abnormal_text_F1", "ROUGE-L_numbers", "numbers_F1",
    )  # fmt: skip
    values = {
        score.name: ratios_of_rows(score.ratio, np.asarray(score.counts, dtype=float))
        for score in scores
        if score.name in kept
    }
    # Where neither report names a finding, F1 has no value; 0 would call two normal reports unlike.
    for score in scores:
        if score.name in ("findings_text_F1", "abnormal_text_F1"):
            empty = np.asarray(score.counts)[:, 1:3].sum(axis=1) == 0
            values[score.name] = np.where(empty, np.nan, values[score.name])
    values["words (control)"] = np.array([len(text.split()) for text in predictions], dtype=float)
    return values


def judge_values(folder: Path, candidates: Sequence[Candidate]) -> dict[str, np.ndarray]:
    """Return the values of judges from stored verdicts; nan where a verdict is missing.

    Raises:
        InputError: The folder has no verdicts on these reports.
    """
    from xraygpt.metrics.crimson import crimson_score
    from xraygpt.metrics.verdicts import Kind, read_verdicts, text_key

    kinds: tuple[Kind, ...] = ("green", "crimson")
    values: dict[str, np.ndarray] = {}
    for kind in kinds:
        verdicts = read_verdicts(folder, kind)
        if verdicts is None:
            continue
        rows = [verdicts.values.get(text_key(kind, c.text, c.reference)) for c in candidates]
        numbers = [
            np.nan if row is None else row["score"] if kind == "green" else crimson_score(row)
            for row in rows
        ]
        values[f"{kind.upper()} by {verdicts.judge}"] = np.array(numbers, dtype=float)
    if not values:
        raise InputError(f"{folder} has no verdicts_green.jsonl or verdicts_crimson.jsonl")
    return values


def number_sensitivity(candidates: Sequence[Candidate]) -> dict[str, tuple[float, float, int]]:
    """Return, for each metric, how often and how far it falls when a number is changed.

    Each reference with a number is compared with itself, and with itself after the change.
    """
    from xraygpt.metrics.quantities import change_one_number

    references = list(dict.fromkeys(c.reference for c in candidates))
    changed = [(text, other) for text in references if (other := change_one_number(text))]
    if not changed:
        return {}
    texts, others = [t for t, _ in changed], [o for _, o in changed]
    same, after = text_metrics(texts, texts), text_metrics(others, texts)
    return {
        name: (
            float((after[name] < same[name] - 1e-9).mean()),
            float(np.nan_to_num(same[name] - after[name]).mean()),
            len(changed),
        )
        for name in same
        if name != "words (control)"
    }


# ---- Agreement -----------------------------------------------------------------------------------


def metric_card(
    candidates: Sequence[Candidate], values: Mapping[str, np.ndarray], resamples: int = RESAMPLES
) -> Card:
    """Compare metrics with the radiologists.

    Args:
        candidates: Result of `read_radpref`.
        values: Value of each metric for each candidate; nan where undefined.
        resamples: Number of resamples of studies for intervals.
    """
    ratings = np.array([c.ratings for c in candidates])
    systems = sorted({c.system for c in candidates})
    system = np.array([systems.index(c.system) for c in candidates])
    study = np.unique([c.study_id for c in candidates], return_inverse=True)[1]
    urgent = np.array([c.missed_urgent for c in candidates])
    count = int(study.max()) + 1
    readers = range(ratings.shape[1])
    card = Card(
        count,
        {name: float(ratings[system == i].mean()) for i, name in enumerate(systems)},
        [_tau(ratings[:, a], ratings[:, b]) for a in readers for b in readers if a < b],
        int(urgent.sum()),
    )
    mean = ratings.mean(axis=1)
    samples = np.random.default_rng(0).integers(0, count, (resamples, count))
    members = [np.flatnonzero(study == i) for i in range(count)]
    resampled = [np.concatenate([members[i] for i in row]) for row in samples]
    numbers = number_sensitivity(candidates)
    for name, metric in values.items():
        statistics = _statistics(metric, mean, system, study)
        draws = [_statistics(metric[i], mean[i], system[i], None) for i in resampled]
        intervals = {}
        for key, value in statistics.items():
            if key == "prefers":
                intervals[key] = (value, *_prefers_interval(metric, mean, study, samples))
                continue
            found = np.array([draw[key] for draw in draws])
            found = found[~np.isnan(found)]
            low, high = np.percentile(found, [2.5, 97.5]) if len(found) else (np.nan, np.nan)
            intervals[key] = (value, float(low), float(high))
        known = ~np.isnan(metric)
        missed = tuple(
            float(metric[known & group].mean()) if (known & group).any() else float("nan")
            for group in (urgent, ~urgent)
        )
        card.metrics.append(
            MetricAgreement(
                name, int(known.sum()), intervals, numbers.get(name, (np.nan, np.nan, 0)),
                (missed[0], missed[1]),
            )
        )  # fmt: skip
    return card


def _statistics(
    metric: np.ndarray, rating: np.ndarray, system: np.ndarray, study: np.ndarray | None
) -> dict[str, float]:
    known = ~np.isnan(metric)
    metric, rating, system = metric[known], rating[known], system[known]
    within = [_tau(metric[system == i], rating[system == i]) for i in np.unique(system)]
    spread = len(metric) > 2 and metric.std() > 0 and rating.std() > 0
    result = {
        "tau": _tau(metric, rating),
        "r": float(np.corrcoef(metric, rating)[0, 1]) if spread else float("nan"),
        "within": float(np.mean(within)) if within else float("nan"),
    }
    if study is not None:
        preferred = _preferences(study, known, metric, rating)
        result["prefers"] = float(np.nanmean(preferred)) if known.any() else float("nan")
    return result


def _preferences(
    study: np.ndarray, known: np.ndarray, metric: np.ndarray, rating: np.ndarray
) -> np.ndarray:
    """Return, for each study, whether the metric prefers what the radiologists prefer.

    A tie of the metric counts one half; studies with a tie of the radiologists are nan.
    """
    result = np.full(int(study.max()) + 1, np.nan)
    groups = study[known]
    for i in range(len(result)):
        pair = np.flatnonzero(groups == i)
        if len(pair) == 2 and rating[pair[0]] != rating[pair[1]]:
            wanted = np.sign(rating[pair[0]] - rating[pair[1]])
            result[i] = (1 + wanted * np.sign(metric[pair[0]] - metric[pair[1]])) / 2
    return result


def _prefers_interval(
    metric: np.ndarray, rating: np.ndarray, study: np.ndarray, samples: np.ndarray
) -> tuple[float, float]:
    known = ~np.isnan(metric)
    per_study = _preferences(study, known, metric[known], rating[known])
    if np.isnan(per_study).all():
        return float("nan"), float("nan")
    low, high = np.nanpercentile(np.nanmean(per_study[samples], axis=1), [2.5, 97.5])
    return float(low), float(high)


def _tau(first: np.ndarray, second: np.ndarray) -> float:
    """Compute Kendall's tau-b (Kendall 1945)."""
    from scipy.stats import kendalltau

    return float(kendalltau(first, second).statistic) if len(first) > 1 else float("nan")


# ---- The page ------------------------------------------------------------------------------------


def as_markdown(card: Card) -> str:
    """Return the card as a table."""
    systems = ", ".join(f"{name} {decimal(mean, 2)}" for name, mean in card.systems.items())
    taus = ", ".join(decimal(tau, 2) for tau in card.readers)
    lines = [
        f"{card.studies} studies with two candidates each, always from the same two systems (mean "
        f"rating: {systems}). Radiologists among themselves: tau {taus}. {card.urgent} candidates "
        f"miss a finding that a radiologist called urgent. {NOTICE}",
        "",
        "| metric | tau | r | within | prefers | number | urgent missed / others | n |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for metric in sorted(card.metrics, key=lambda m: -np.nan_to_num(m.values["tau"][0], nan=-1)):
        cells = [_interval(metric.values[name]) for name in ("tau", "r", "within", "prefers")]
        share, fall, count = metric.number
        cells.append(f"{share:.0%} of {count}, by {decimal(fall, 3)}" if count else "")
        missed, others = metric.urgent
        cells.append(f"{decimal(missed, 2)} / {decimal(others, 2)}" if card.urgent else "")
        lines.append(f"| {metric.name} | {' | '.join(cells)} | {metric.n} |")
    return "\n".join(lines) + "\n"


def _interval(values: tuple[float, float, float]) -> str:
    if np.isnan(values[0]):
        return "–"
    return f"{decimal(values[0], 2)} ({decimal(values[1], 2)} to {decimal(values[2], 2)})"


def as_rows(card: Card) -> dict[str, Any]:
    """Return the card as JSON."""
    return {
        "studies": card.studies, "systems": card.systems, "readers_tau": card.readers,
        "missed_urgent": card.urgent, "resamples": RESAMPLES,
        "metrics": [vars(metric) for metric in card.metrics],
    }  # fmt: skip


def main() -> None:
    """Parse the command line, and print the card."""
    parser = argparse.ArgumentParser(
        prog="python -m xraygpt.metrics.agreement",
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    add = parser.add_argument
    add("data", type=existing_path, metavar="DATA", help="folder that contains RadPref")
    add("--verdicts", type=existing_path, help="folder with verdicts of python -m xraygpt.judge")
    add("--bertscore", type=existing_path, help="folder of a transformers encoder, for BERTScore")
    add("--json", type=Path, help="also write the card to this file")
    args = parser.parse_args()
    candidates = read_radpref(args.data)
    texts, references = [c.text for c in candidates], [c.reference for c in candidates]
    values = text_metrics(texts, references)
    if args.bertscore:
        from xraygpt.metrics.bertscore import BertScorer
        from xraygpt.metrics.radcliq import BERTSCORE_LAYER

        scorer = BertScorer(args.bertscore, BERTSCORE_LAYER)
        values["BERTScore"] = np.asarray(scorer.score(texts, references).f1, dtype=float)
    if args.verdicts:
        values |= judge_values(args.verdicts, candidates)
    card = metric_card(candidates, values)
    sys.stdout.write(as_markdown(card))
    if args.json:
        args.json.write_text(json.dumps(as_rows(card), indent=1), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(run_main(main))
