"""Memory of a training step by preset, batch size and precision, as `train.py --dry-run` estimates.

    python benchmarks/memory.py [--presets nano mini] [--batches 4 16 32]

The reports are those of IU X-ray's train split (XRAYGPT_DATA), the longest first. The encoder is
frozen and its features are stored; trained is either only the linear layer, or also the Q-Former
and LoRA. `--check` also trains two steps and prints the actual peak: of the tensors on a GPU,
otherwise of the whole process.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
CONFIG = ["--cfg-path", "benchmarks/training.yaml"]
TRAINED = {
    "linear layer": ["model.freeze_qformer=true"],
    "Q-Former, LoRA": [
        "model.freeze_qformer=false",
        "model.lora={r: 16, alpha: 32, target: [q_proj, k_proj, v_proj, o_proj]}",
    ],
}


def run(options: list[str]) -> str:
    """Run train.py and return its standard output."""
    command = [sys.executable, "train.py", *CONFIG, *options]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if result.returncode:
        raise SystemExit(result.stderr[-3000:])
    return result.stdout


def measure(preset: str, batch: int, dtype: str, trained: str, check: bool) -> dict[str, Any]:
    """One row of the table."""
    options = [f"model.model_type={preset}", f"model.llm_dtype={dtype}", *TRAINED[trained]]
    options += [
        f"run.batch_size_train={batch}",
        f"run.amp={'bf16' if dtype != 'float32' else 'false'}",
    ]
    estimate = json.loads(run(["--dry-run", "--options", *options]).splitlines()[-1])
    row = {"preset": preset, "batch": batch, "dtype": dtype, "trained": trained}
    row |= {"tokens": estimate["tokens"], "GiB": estimate["peak_gib"]}
    if check:
        with tempfile.TemporaryDirectory() as folder:
            steps = ["run.max_epoch=null", "run.max_steps=2", "run.eval_every=0"]
            output = [f"run.output_dir={folder}", "run.log_every=1", "run.save_every=0"]
            run(["--options", *options, *steps, *output])
            (log,) = Path(folder).glob("*/metrics.jsonl")
            lines = [json.loads(line) for line in log.read_text().splitlines()]
            row["taken"] = max(line.get("train/peak_gib", 0.0) for line in lines)
    return row


def main() -> None:
    """Run the benchmark and print the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--presets", nargs="+", default=["mini"])
    parser.add_argument("--batches", type=int, nargs="+", default=[4, 16, 32])
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--check", action="store_true", help="also train two steps")
    parser.add_argument("--out", type=Path, help="JSON file")
    args = parser.parse_args()
    rows = []
    print("| preset | trained | precision | rows | longest, tokens | GiB |\n" + "|---" * 6 + "|")
    for preset in args.presets:
        for trained in TRAINED:
            for dtype in args.dtypes:
                for batch in args.batches:
                    row = measure(preset, batch, dtype, trained, args.check)
                    rows.append(row)
                    actual = f" (actual {row['taken']:.2f})" if args.check else ""
                    print(
                        f"| {preset} | {trained} | {dtype} | {batch} | {row['tokens']} "
                        f"| {row['GiB']:.2f}{actual} |",
                        flush=True,
                    )
    if args.out:
        args.out.write_text(json.dumps(rows, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
