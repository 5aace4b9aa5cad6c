"""Memory of a training step by preset, batch size and precision, as `train.py --dry-run` foretells.

    python benchmarks/memory.py [--presets nano mini] [--batches 4 16 32]

Reports are IU X-ray's train split (XRAYGPT_DATA), the longest first; encoder frozen and stored, the
linear layer alone trained, and once more with the Q-Former and LoRA. `--check` trains two steps of
each as well and prints what was held in truth. On a GPU it is the tensors' memory, else the whole
process's.
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
    """Standard output of train.py."""
    command = [sys.executable, "train.py", *CONFIG, *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr[-3000:])
    return done.stdout


def row(preset: str, batch: int, dtype: str, trained: str, check: bool) -> dict[str, Any]:
    """One line of the table."""
    options = [f"model.model_type={preset}", f"model.llm_dtype={dtype}", *TRAINED[trained]]
    options += [
        f"run.batch_size_train={batch}",
        f"run.amp={'bf16' if dtype != 'float32' else 'false'}",
    ]
    told = json.loads(run(["--dry-run", "--options", *options]).splitlines()[-1])
    found = {"preset": preset, "batch": batch, "dtype": dtype, "trained": trained}
    found |= {"tokens": told["tokens"], "GiB": told["peak_gib"]}
    if check:
        with tempfile.TemporaryDirectory() as folder:
            steps = ["run.max_epoch=null", "run.max_steps=2", "run.eval_every=0"]
            where = [f"run.output_dir={folder}", "run.log_every=1", "run.save_every=0"]
            run(["--options", *options, *steps, *where])
            (log,) = Path(folder).glob("*/metrics.jsonl")
            lines = [json.loads(line) for line in log.read_text().splitlines()]
            found["taken"] = max(x.get("train/peak_gib", 0.0) for x in lines)
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--presets", nargs="+", default=["mini"])
    parser.add_argument("--batches", type=int, nargs="+", default=[4, 16, 32])
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--check", action="store_true", help="train two steps as well")
    parser.add_argument("--out", type=Path, help="JSON file")
    given = parser.parse_args()
    rows = []
    print("| preset | trained | precision | rows | longest, tokens | GiB |\n" + "|---" * 6 + "|")
    for preset in given.presets:
        for trained in TRAINED:
            for dtype in given.dtypes:
                for batch in given.batches:
                    one = row(preset, batch, dtype, trained, given.check)
                    rows.append(one)
                    held = f" (taken {one['taken']:.2f})" if given.check else ""
                    print(
                        f"| {preset} | {trained} | {dtype} | {batch} | {one['tokens']} "
                        f"| {one['GiB']:.2f}{held} |",
                        flush=True,
                    )
    if given.out:
        given.out.write_text(json.dumps(rows, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
