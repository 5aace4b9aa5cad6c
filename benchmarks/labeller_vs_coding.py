"""Agreement of the rule-based finding labeller with the human coding of the IU X-ray reports.

    python benchmarks/labeller_vs_coding.py [--split val] [--uncertain positive]

Prints a Markdown table. The rules were written using only the splits train and extra. The folder of
the corpora is XRAYGPT_DATA, or by default ../shared/data next to the repository.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

from xraygpt.metrics.labelled_findings import UncertainPolicy, labelled_finding_scores
from xraygpt.vocabulary.chest_labeller import FINDINGS, Status, label
from xraygpt.vocabulary.chest_mesh import findings_of, is_coded
from xraygpt.vocabulary.openi import reserved_split

ROOT = Path(__file__).resolve().parents[1]
MIN_SUPPORT = 8
ABNORMAL = tuple(name for name in FINDINGS if name != "no_finding")


def read_reports(folder: Path, splits: set[str]) -> tuple[list[tuple[str, list[str]]], int, int]:
    """Read text and codes of the coded reports, one per study.

    Args:
        folder: Folder of the corpora, which contains ``iu_xray``.
        splits: Names of splits to read.

    Returns:
        The reports, the number of their rows (images), and the number of rows that were left out
        because they are not coded.
    """
    studies: dict[str, tuple[str, list[str]]] = {}
    rows = uncoded = 0
    with (folder / "iu_xray" / "reports.jsonl").open(encoding="utf-8") as lines:
        for line in lines:
            row: dict[str, Any] = json.loads(line)
            if row["split"] not in splits or reserved_split(row["study"]):
                continue
            if not is_coded(row["mesh_major"]):
                uncoded += 1
                continue
            rows += 1
            text = f"{row['findings']}\n\n{row['impression']}"
            studies[row["study"]] = (text, row["mesh_major"])
    return list(studies.values()), rows, uncoded


def evaluate(
    labels: list[dict[str, Status]], references: list[frozenset[str]], policy: UncertainPolicy
) -> dict[str, Any]:
    """Scores over all findings ("all") and without ``no_finding`` ("abnormal")."""
    return {
        name: labelled_finding_scores(
            labels, references, uncertain=policy, findings=findings, min_support=MIN_SUPPORT
        )
        for name, findings in (("all", FINDINGS), ("abnormal", ABNORMAL))
    }


def table(result: dict[str, Any]) -> str:
    """Format the scores as Markdown; * marks findings left out of the averages."""
    lines = [
        "| finding | support | predicted | precision | recall | F1 |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    scores = result["all"]
    for name, row in scores["findings"].items():
        mark = "" if name in scores["averaged"] else " *"
        lines.append(
            f"| {name}{mark} | {row['support']} | {row['predicted']} | {row['precision']:.3f} "
            f"| {row['recall']:.3f} | {row['f1']:.3f} |"
        )
    for title, part in (("with no_finding", "all"), ("without no_finding", "abnormal")):
        micro, macro = result[part]["micro"], result[part]["macro"]
        lines.append(
            f"| **micro, {title}** | {micro['support']} | {micro['predicted']} "
            f"| {micro['precision']:.3f} | {micro['recall']:.3f} | **{micro['f1']:.3f}** |"
        )
        lines.append(
            f"| **macro, {title}** | | | {macro['precision']:.3f} | {macro['recall']:.3f} "
            f"| **{macro['f1']:.3f}** |"
        )
    return "\n".join(lines)


def main() -> None:
    """Label the reports and print the agreement."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--split", default="val", help="train, val, extra, or several with commas")
    parser.add_argument(
        "--uncertain",
        choices=["positive", "negative", "ignore"],
        help="how to count uncertain mentions; default: positive and negative",
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    args = parser.parse_args()

    folder = Path(os.environ.get("XRAYGPT_DATA", ROOT.parent / "shared" / "data"))
    reports, rows, uncoded = read_reports(folder, set(args.split.split(",")))
    start = time.perf_counter()
    labels = [label(text) for text, _ in reports]
    seconds = time.perf_counter() - start
    references = [findings_of(codes) for _, codes in reports]
    policies: tuple[UncertainPolicy, ...] = ("positive", "negative")
    if args.uncertain:
        policies = (args.uncertain,)
    results = {policy: evaluate(labels, references, policy) for policy in policies}
    if args.json:
        print(json.dumps({"reports": len(reports), "rows": rows, **results}))
        return
    print(
        f"Split {args.split}: n = {len(reports)} reports ({rows} rows; {uncoded} uncoded rows "
        f"left out), {len(reports) / seconds:.0f} reports/s.\n"
        f"Averages over the findings with at least {MIN_SUPPORT} positives; * marks the others."
    )
    for policy, result in results.items():
        print(f"\nUncertain counts as {policy}:\n\n{table(result)}")


if __name__ == "__main__":
    main()
