"""Time to compute all offline metrics over 3,000 predictions.

    python benchmarks/scoring.py [--count 3000]

The references are findings sections of IU X-ray's training splits (XRAYGPT_DATA), and the
predictions are those of other studies. Prints the seconds of each family of metrics and their sum.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import time
from pathlib import Path

from xraygpt.metrics.coco import coco_scores
from xraygpt.metrics.protocols import R2Gen
from xraygpt.metrics.reports import report_scores
from xraygpt.vocabulary.openi import reserved_split

ROOT = Path(__file__).resolve().parents[1]


def read_findings(count: int) -> list[str]:
    """Findings sections of `count` reports, repeated if there are fewer."""
    folder = Path(os.environ.get("XRAYGPT_DATA", ROOT.parent / "shared" / "data"))
    file = folder / "iu_xray" / "reports.jsonl"
    rows = [json.loads(line) for line in file.open(encoding="utf-8")]
    rows = [r for r in rows if r["split"] in ("train", "extra") and not reserved_split(r["study"])]
    findings = [r["findings"] for r in rows if r["findings"]]
    return [findings[i % len(findings)] for i in range(count)]


def main() -> None:
    """Run the benchmark and print the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=3000)
    count = parser.parse_args().count
    references = read_findings(count)
    predictions = references[:]
    random.Random(0).shuffle(predictions)
    studies = [f"s{i}" for i in range(count)]
    protocol = R2Gen.fit(references)
    start = time.perf_counter()
    coco_scores(predictions, references, protocol, studies, meteor=True)
    middle = time.perf_counter()
    report_scores(predictions, references, [None] * count, studies)
    end = time.perf_counter()
    print(
        f"{count} predictions: COCO scores and METEOR {middle - start:.1f} s, "
        f"other text and finding scores {end - middle:.1f} s, all {end - start:.1f} s"
    )


if __name__ == "__main__":
    main()
