"""VQA-RAD cross-validated by image, against the same model trained and tested with black images.

    python benchmarks/vqa_rad_folds.py --folds 5

Every question is answered by a model that was trained on neither the question nor its image.
Nothing is selected on the held-out fold: each training runs all its epochs, and its last weights
are evaluated. After an interruption, finished trainings are not repeated. The answers of all folds
are scored together; intervals resample images.
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
from xraygpt.common.numbers import with_interval
from xraygpt.evaluation.prediction_file import read_rows
from xraygpt.metrics.statistics import Score, weighted_sum
from xraygpt.metrics.vqa import vqa_scores

ROOT = Path(__file__).resolve().parents[1]
KINDS = {"image": "false", "question_only": "true"}  # -> blank_images


def main() -> None:
    """Train and evaluate each fold, and print the scores over all folds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("output/vqa_rad_folds"))
    parser.add_argument("--options", nargs="*", default=[], help="overrides for every training")
    args = parser.parse_args()
    answers = {
        kind: [fold_answers(args, kind, fold) for fold in range(args.folds)] for kind in KINDS
    }
    systems = {
        kind: [row for fold in folds for row in fold["true"]] for kind, folds in answers.items()
    }
    systems["most_common"] = [row for fold in answers["image"] for row in fold["most_common"]]
    systems["shuffled"] = [row for fold in answers["image"] for row in fold["shuffled-0"]]
    sys.stdout.write(format_table({name: pooled_scores(rows) for name, rows in systems.items()}))


def fold_answers(args: argparse.Namespace, kind: str, fold: int) -> dict[str, list[dict[str, Any]]]:
    """Answers to one fold's questions by condition, from a model trained on the other folds."""
    options_hash = hashlib.sha256(" ".join(args.options).encode()).hexdigest()[:6]
    folder = args.out / f"{kind}-{fold}-of-{args.folds}-{options_hash}"
    data = [
        f"datasets.vqa_rad.split={{folds: {args.folds}, fold: {fold}, val_fraction: 0}}",
        f"datasets.vqa_rad.blank_images={KINDS[kind]}",
    ]
    if not list(folder.glob("evaluate/*/scores.json")):
        train = [f"run.output_dir={folder / 'train'}", "run.resume_ckpt_path=auto", *args.options]
        _run("train.py", "train_configs/vqa_rad.yaml", [*data, *train, "run.eval_every=0"])
        evaluate = [f"model.ckpt={folder / 'train'}", f"run.output_dir={folder / 'evaluate'}"]
        evaluate += [o for o in args.options if o.startswith(("model.", "datasets."))]
        evaluate += ["run.shuffles=1", "run.controls=[shuffled, most_common]"]
        _run("evaluate.py", "eval_configs/vqa_rad.yaml", [*data, *evaluate])
    evaluation = next(folder.glob("evaluate/*/scores.json")).parent
    names = ("true", "most_common", "shuffled-0")
    return {n: read_rows(evaluation / f"predictions_{n}.jsonl") for n in names}


def _run(script: str, yaml: str, options: list[str]) -> None:
    command = [sys.executable, str(ROOT / script), "--cfg-path", str(ROOT / yaml)]
    result = subprocess.run([*command, "--options", *options], check=False)
    if result.returncode:
        raise TrainingError(f"{script} with {yaml} ended with {result.returncode}; see above")


def pooled_scores(rows: list[dict[str, Any]]) -> dict[str, Score]:
    """Scores over the answers of all folds, sorted so that systems can be paired."""
    rows = sorted(rows, key=lambda r: str(r["sample_id"]))
    scores = vqa_scores(
        [r["prediction"] for r in rows],
        [r["reference"] for r in rows],
        [r["meta"].get("answer_type") for r in rows],
        [r["study_id"] for r in rows],
    )
    return {s.name: s for s in scores}


def format_table(systems: dict[str, dict[str, Score]]) -> str:
    """Accuracy of each system, and its paired difference from the system with images."""
    lines = ["| accuracy | n | " + " | ".join(systems) + " |", "|---" * (len(systems) + 2) + "|"]
    for name, image_score in systems["image"].items():
        cells = []
        for system, scores in systems.items():
            score = scores[name]
            cell = with_interval(score.as_row())
            if system != "image":
                gap = weighted_sum([(1.0, image_score), (-1.0, score)])
                cell += f"; image {with_interval(gap.as_row(), signed=True)}"
            cells.append(cell)
        lines.append(f"| {name} | {image_score.n} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(run_main(main))
