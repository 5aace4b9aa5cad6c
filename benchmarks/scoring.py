"""How long scoring takes: all offline metrics over 3,000 predictions.

    python benchmarks/scoring.py [--count 3000]

Texts are findings of the Indiana training split, answered by those of other studies; the corpus is
found by XRAYGPT_DATA. Prints seconds of each family and of the whole.
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

ROOT = Path(__file__).resolve().parents[1]


def texts(count: int) -> list[str]:
    """Reports, as many as are asked for."""
    folder = Path(os.environ.get("XRAYGPT_DATA", ROOT.parent / "shared" / "data"))
    file = folder / "iu_xray" / "reports.jsonl"
    rows = [json.loads(line) for line in file.open(encoding="utf-8")]
    found = [r["findings"] for r in rows if r["split"] in ("train", "extra") and r["findings"]]
    return [found[i % len(found)] for i in range(count)]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=3000)
    count = parser.parse_args().count
    references = texts(count)
    said = references[:]
    random.Random(0).shuffle(said)
    studies = [f"s{i}" for i in range(count)]
    words = R2Gen.learn(references)
    began = time.perf_counter()
    coco_scores(said, references, words, studies, meteor=True)
    middle = time.perf_counter()
    report_scores(said, references, [None] * count, studies)
    end = time.perf_counter()
    print(
        f"{count} predictions: COCO's scores and METEOR {middle - began:.1f} s, words and findings "
        f"{end - middle:.1f} s, all {end - began:.1f} s"
    )


if __name__ == "__main__":
    main()
