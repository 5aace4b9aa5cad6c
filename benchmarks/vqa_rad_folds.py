"""VQA-RAD cross-validated by image, beside the same model trained and asked with black images.

    python benchmarks/vqa_rad_folds.py --folds 5

Every question is answered by a model that saw neither it nor its image. Nothing is selected on the
held-out fold: each training runs its epochs and its last weights are measured. Stopped, it goes on
with the next training. Answers of all folds are scored together; intervals resample images.
"""

from __future__ import annotations

import argparse
import hashlib
import subprocess
import sys
from pathlib import Path
from typing import Any

from xraygpt.common.cli import run_main
from xraygpt.common.errors import TrainingError
from xraygpt.metrics.statistics import Score, weighted_sum
from xraygpt.metrics.vqa import vqa_scores
from xraygpt.runners.logs import read_rows

ROOT = Path(__file__).resolve().parents[1]
KINDS = {"image": "false", "question_only": "true"}  # -> blank_images


def main() -> None:
    """Train and ask each fold, pool, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("output/vqa_rad_folds"))
    parser.add_argument("--options", nargs="*", default=[], help="for every training")
    given = parser.parse_args()
    asked = {
        kind: [fold_answers(given, kind, fold) for fold in range(given.folds)] for kind in KINDS
    }
    rows = {kind: [row for fold in folds for row in fold["true"]] for kind, folds in asked.items()}
    rows["most_common"] = [r for fold in asked["image"] for r in fold["most_common"]]
    rows["shuffled"] = [r for fold in asked["image"] for r in fold["shuffled-0"]]
    sys.stdout.write(table({name: pooled(found) for name, found in rows.items()}))


def fold_answers(given: Any, kind: str, fold: int) -> dict[str, list[dict[str, Any]]]:
    """By condition the answers to a fold's questions, of a model trained on the others."""
    chosen = hashlib.sha256(" ".join(given.options).encode()).hexdigest()[:6]
    place = given.out / f"{kind}-{fold}-of-{given.folds}-{chosen}"
    data = [
        f"datasets.vqa_rad.split={{folds: {given.folds}, fold: {fold}, val_fraction: 0}}",
        f"datasets.vqa_rad.blank_images={KINDS[kind]}",
    ]
    if not list(place.glob("evaluate/*/scores.json")):
        train = [f"run.output_dir={place / 'train'}", "run.resume_ckpt_path=auto", *given.options]
        _run("train.py", "train_configs/vqa_rad.yaml", [*data, *train, "run.eval_every=0"])
        ask = [f"model.ckpt={place / 'train'}", f"run.output_dir={place / 'evaluate'}"]
        ask += [o for o in given.options if o.startswith(("model.", "datasets."))]
        ask += ["run.shuffles=1", "run.controls=[shuffled, most_common]"]
        _run("evaluate.py", "eval_configs/vqa_rad.yaml", [*data, *ask])
    folder = next(place.glob("evaluate/*/scores.json")).parent
    names = ("true", "most_common", "shuffled-0")
    return {n: read_rows(folder / f"predictions_{n}.jsonl")[1:] for n in names}


def _run(script: str, yaml: str, options: list[str]) -> None:
    command = [sys.executable, str(ROOT / script), "--cfg-path", str(ROOT / yaml)]
    done = subprocess.run([*command, "--options", *options], check=False)
    if done.returncode:
        raise TrainingError(f"{script} with {yaml} ended with {done.returncode}; see above")


def pooled(rows: list[dict[str, Any]]) -> dict[str, Score]:
    """Scores of all folds' answers, in one order, so that systems can be paired."""
    rows = sorted(rows, key=lambda r: str(r["sample_id"]))
    scores = vqa_scores(
        [r["prediction"] for r in rows],
        [r["reference"] for r in rows],
        [r["meta"].get("answer_type") for r in rows],
        [r["study_id"] for r in rows],
    )
    return {s.name: s for s in scores}


def table(systems: dict[str, dict[str, Score]]) -> str:
    """Accuracy of each system, and how far the one with images is above it, paired."""
    lines = ["| accuracy | n | " + " | ".join(systems) + " |", "|---" * (len(systems) + 2) + "|"]
    for name, first in systems["image"].items():
        cells = []
        for system, scores in systems.items():
            s = scores[name]
            cell = f"{s.value:.3f} ({s.low:.3f} … {s.high:.3f})"
            if system != "image":
                gap = weighted_sum([(1.0, first), (-1.0, s)])
                cell += f"; image is {gap.value:+.3f} ({gap.low:+.3f} … {gap.high:+.3f}) above"
            cells.append(cell)
        lines.append(f"| {name} | {first.n} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(run_main(main))
